import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tools_site.settings")

from greenroom import get_wsgi_application

application = get_wsgi_application()
