"""The settings of a site that runs on one's own machine, with nothing but Django in front.

From the environment: PORT, MONTAGE_UPSTREAM, MONTAGE_DATABASE, MONTAGE_POSTGRESQL, MONTAGE_MEDIA,
MONTAGE_BOOKING_RATE, MONTAGE_SECRET_KEY, DJANGO_DEBUG.
"""

import os
from pathlib import Path

import django

from .secret import secret_key

BASE_DIR = Path(__file__).resolve().parent.parent

# Off even here: Django's debug mode remembers every query, and what is measured ought to be
# what would be deployed.
DEBUG = os.environ.get("DJANGO_DEBUG") == "1"
SECRET_KEY = os.environ.get("MONTAGE_SECRET_KEY") or secret_key(BASE_DIR / ".secret_key")
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]

INSTALLED_APPS = [
    "greenroom",
    "montage",
    "boxoffice",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

GREENROOM = {"LIFESPAN": "montage.lifespan.lifespan"}

# Where the pages find the services that they compose: this very server. It is a setting and
# never made from the request's Host header: whoever sends a request could otherwise choose
# where the server sends its own ones. gunicorn.conf.py sets the variable to what it bound.
MONTAGE_UPSTREAM = os.environ.get(
    "MONTAGE_UPSTREAM", f"http://127.0.0.1:{os.environ.get('PORT', '8000')}"
)
MONTAGE_TIMEOUT = 2.0  # seconds that a page waits for one service

# Those of `startproject`. All run on the event loop around a coroutine view, and what they ask of
# the database waits there.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
SESSION_COOKIE_AGE = 8 * 60 * 60

if django.VERSION >= (6, 0):
    # Nothing comes from elsewhere and nothing is inline, here or in the admin.
    MIDDLEWARE.insert(1, "django.middleware.csp.ContentSecurityPolicyMiddleware")
    SECURE_CSP = {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "base-uri": ["'none'"],
        "object-src": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }

ROOT_URLCONF = "montage.urls"
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
MEDIA_ROOT = os.environ.get("MONTAGE_MEDIA") or BASE_DIR / "media"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("MONTAGE_DATABASE") or BASE_DIR / "montage.sqlite3",
        # Writers wait for each other, rather than be refused when they have read before.
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }
}
if "MONTAGE_POSTGRESQL" in os.environ:
    # The name of a database; libpq reads the rest from PGHOST, PGUSER and so on.
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["MONTAGE_POSTGRESQL"],
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rest_framework_simplejwt.authentication.JWTAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": [
        "rest_framework.renderers.JSONRenderer",
        "boxoffice.renderers.BrowsablePages",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticatedOrReadOnly"],
    "DEFAULT_THROTTLE_CLASSES": ["rest_framework.throttling.ScopedRateThrottle"],
    "DEFAULT_THROTTLE_RATES": {"booking": os.environ.get("MONTAGE_BOOKING_RATE", "20/min")},
    "DEFAULT_FILTER_BACKENDS": [
        "django_filters.rest_framework.DjangoFilterBackend",
        "rest_framework.filters.SearchFilter",
        "rest_framework.filters.OrderingFilter",
    ],
    "DEFAULT_PAGINATION_CLASS": "boxoffice.pagination.Pages",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Box office",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "COMPONENT_SPLIT_REQUEST": True,
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "boxoffice.schema.add_errors",
    ],
}

USE_I18N = False
TIME_ZONE = "UTC"
USE_TZ = True

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "{levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        "montage": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "boxoffice": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        # Without this, an error would be mailed to nobody and shown nowhere while DEBUG is off.
        "django": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}
