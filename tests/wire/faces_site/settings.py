"""A project that is served by several faces at once, Django's own among them."""

import os

SECRET_KEY = "for tests only"
ALLOWED_HOSTS = ["127.0.0.1", "site.example", ".wild.example"]
# Django's own handler is to be Django's own.
INSTALLED_APPS = [
    *(() if os.environ.get("SITE_STOCK") else ("greenroom",)),
    "django.contrib.sessions",
    "django.contrib.messages",
]
ROOT_URLCONF = "faces_site.urls"
MIDDLEWARE = [
    "faces_site.middleware.Outer",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "faces_site.middleware.coroutine",
    "faces_site.middleware.Hooks",
]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
USE_X_FORWARDED_HOST = False
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
DATA_UPLOAD_MAX_NUMBER_FIELDS = 20
DATA_UPLOAD_MAX_NUMBER_FILES = 5
DATA_UPLOAD_MAX_MEMORY_SIZE = 100_000
FILE_UPLOAD_MAX_MEMORY_SIZE = 50_000
USE_TZ = True
DEBUG = bool(os.environ.get("SITE_DEBUG"))
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
GREENROOM = {"LOOP_SAFE": ["faces_site.middleware.*"]}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "ERROR"},
}
