"""The site that is measured: `startproject`'s, and what a scenario asks for."""

import json
import os
from pathlib import Path

SECRET_KEY = "for measurements on loopback only"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "articles",
]
SEVEN = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
MIDDLEWARE = {
    "seven": SEVEN,
    "none": [],
    "third": [*SEVEN, "middleware.Stamp"],
}[os.environ.get("BENCH_MIDDLEWARE", "seven")]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).parent / "templates"],
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {"default": json.loads(os.environ.get("BENCH_DATABASE", "{}"))}

APPLICATION = os.environ.get("BENCH_APPLICATION", "django")
if APPLICATION == "greenroom":
    INSTALLED_APPS.insert(0, "greenroom")
    GREENROOM = json.loads(os.environ.get("BENCH_GREENROOM", "{}"))
if APPLICATION == "bolt":
    INSTALLED_APPS.append("django_bolt")

# Only where it is measured: imports count where memory does.
API = "BENCH_API" in os.environ
if API:
    INSTALLED_APPS.append("rest_framework")
    REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"anon": "1000/s"}}

if "BENCH_REDIS" in os.environ:
    CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": os.environ["BENCH_REDIS"],
        }
    }
    SESSION_ENGINE = "django.contrib.sessions.backends.cache"
