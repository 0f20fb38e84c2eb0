"""The same with Django's own application."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "traced_site.settings")

from . import tracing

tracing.instrument()

from django.core.wsgi import get_wsgi_application  # noqa: E402 - after the above

application = tracing.wrap(get_wsgi_application())
