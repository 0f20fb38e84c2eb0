import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "orm_site.settings")

from greenroom import get_asgi_application

application = get_asgi_application()
