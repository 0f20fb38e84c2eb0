"""A project with apps that many projects have; its database by the environment.

With SITE_TOOLBAR it is in development: DEBUG is on, and the toolbar shows its panels.
"""

import json
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent

DEBUG = bool(os.environ.get("SITE_TOOLBAR"))
SECRET_KEY = "for tests only, and as long as a key for HS256 has to be"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
INTERNAL_IPS = ["127.0.0.1"]
# Its profile shows all that was called, and not what took an eighth of the time: how fast a
# machine is must not matter.
DEBUG_TOOLBAR_CONFIG = {"PROFILER_THRESHOLD_RATIO": 1_000_000}
DATABASES = {"default": json.loads(os.environ["SITE_DATABASES"])}
GREENROOM = json.loads(os.environ.get("SITE_GREENROOM", "{}"))
INSTALLED_APPS = [
    "greenroom",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "corsheaders",
    "debug_toolbar",
    "django_filters",
    "drf_spectacular",
    "rest_framework",
    "tools_site",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "debug_toolbar.middleware.DebugToolbarMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "tools_site.places.middleware",
]
ROOT_URLCONF = "tools_site.urls"
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
    }
]
STATIC_URL = "static/"
STATIC_ROOT = HERE / "static"
WHITENOISE_ROOT = HERE / "root"
WHITENOISE_AUTOREFRESH = DEBUG or bool(os.environ.get("SITE_AUTOREFRESH"))
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
    "tools_site.places.Waits",
]
# Hashing is not what is tested here.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*"]
ACCOUNT_RATE_LIMITS = False
LOGIN_REDIRECT_URL = "/whoami/"
CORS_ALLOWED_ORIGINS = ["https://shop.example"]
CORS_ALLOW_CREDENTIALS = True
CORS_URLS_REGEX = r"^/(api|whoami)/.*$"
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rest_framework_simplejwt.authentication.JWTAuthentication",
    ],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
