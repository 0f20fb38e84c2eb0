"""A project that is traced: by what, and how, says the environment (TRACED, TRACED_HOW)."""

import json
import os

from . import tracing

SECRET_KEY = "for tests only"
ALLOWED_HOSTS = ["127.0.0.1"]
DATABASES = json.loads(os.environ["SITE_DATABASES"])
GREENROOM = {"LIFESPAN": "traced_site.lifespan.client", "MAX_PARKED": 64}
INSTALLED_APPS = [
    "greenroom",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    *json.loads(os.environ.get("SITE_MIDDLEWARE", "[]")),
]
ROOT_URLCONF = "traced_site.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"named": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "named"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}

tracing.begin()
