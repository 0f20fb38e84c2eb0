"""The site that is measured: `startproject`'s middlewares."""

import json
import os

SECRET_KEY = "for measurements on loopback only"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "site_urls"
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
]
if os.environ.get("BENCH_APPLICATION") == "greenroom":
    INSTALLED_APPS.insert(0, "greenroom")
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
DATABASES = {"default": json.loads(os.environ.get("BENCH_DATABASE", "{}"))}
