import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "traced_site.settings")

from . import tracing

tracing.instrument()

if "SITE_SHARES_A_CONTEXT" in os.environ:
    tracing.share_a_context()

from greenroom import get_wsgi_application  # noqa: E402 - after the above

application = tracing.wrap(get_wsgi_application())
