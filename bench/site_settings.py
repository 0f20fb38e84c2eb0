"""The site that is measured: Django's default middlewares but the one that needs the database."""

import os

SECRET_KEY = "for measurements on loopback only"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "site_urls"
USE_TZ = True
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"
INSTALLED_APPS = ["django.contrib.sessions", "django.contrib.messages"]
if os.environ.get("BENCH_APPLICATION") == "greenroom":
    INSTALLED_APPS.insert(0, "greenroom")
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
