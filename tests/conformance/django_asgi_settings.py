"""For Django's own tests of its ASGI handler, with ours in its place.

GREENROOM_REPORT names the file that says how often ours was called.
"""

import atexit
import os
from pathlib import Path

import django.core.asgi

from greenroom.asgi import AsyncDjangoASGIApplication

SECRET_KEY = "for tests only"
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3"},
    "other": {"ENGINE": "django.db.backends.sqlite3"},
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False

_calls = 0


class Counted(AsyncDjangoASGIApplication):
    async def __call__(self, *args):
        global _calls
        _calls += 1
        await super().__call__(*args)


django.core.asgi.get_asgi_application = Counted
atexit.register(lambda: Path(os.environ["GREENROOM_REPORT"]).write_text(str(_calls)))
