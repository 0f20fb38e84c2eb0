"""Django's own application, over ASGI."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "faces_site.settings")

from django.core.asgi import get_asgi_application

application = get_asgi_application()
