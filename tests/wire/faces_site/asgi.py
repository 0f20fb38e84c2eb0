"""Our application, over ASGI."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "faces_site.settings")

from greenroom import get_asgi_application

application = get_asgi_application()
