"""A project for the tests: no database is touched unless a test says so."""

import os
import tempfile

SECRET_KEY = "for tests only"
ALLOWED_HOSTS = ["testserver", "127.0.0.1", "localhost"]
INSTALLED_APPS = [
    "greenroom",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "rest_framework",
    "rest_framework.authtoken",
    "project.shop",
]
ROOT_URLCONF = "project.urls"
MIDDLEWARE: list[str] = []
USE_TZ = True
USE_I18N = True
LANGUAGES = [("en", "English"), ("de", "Deutsch"), ("fr", "Français")]
LANGUAGE_CODE = "en"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get(
            "GREENROOM_TEST_DATABASE",
            os.path.join(tempfile.gettempdir(), f"greenroom-{os.getpid()}.sqlite3"),
        ),
    }
}
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
# PyJWT warns of a short one.
SIMPLE_JWT = {"SIGNING_KEY": "for tests only, and as long as a key has to be"}
LOGGING_CONFIG = None
