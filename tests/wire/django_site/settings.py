"""A project that is served by real gunicorn processes; placed by the environment."""

import json
import os
import tempfile

SECRET_KEY = "for tests only"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["greenroom"]
ROOT_URLCONF = "django_site.urls"
MIDDLEWARE = json.loads(
    os.environ.get(
        "SITE_MIDDLEWARE",
        json.dumps(
            [
                "django.middleware.security.SecurityMiddleware",
                "django.middleware.common.CommonMiddleware",
                "django.middleware.csrf.CsrfViewMiddleware",
                "django.middleware.clickjacking.XFrameOptionsMiddleware",
            ]
        ),
    )
)
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.path.join(tempfile.gettempdir(), f"greenroom-site-{os.getpid()}.sqlite3"),
    }
}
USE_TZ = True
GREENROOM = json.loads(os.environ.get("SITE_GREENROOM", "{}"))
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
