"""Our application, and Django's own."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_site.settings")

from greenroom import AsyncDjangoApplication

application = AsyncDjangoApplication()
