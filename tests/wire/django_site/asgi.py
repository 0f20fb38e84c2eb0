"""Our application, for ASGI servers."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_site.settings")

from greenroom import get_asgi_application

application = get_asgi_application()
