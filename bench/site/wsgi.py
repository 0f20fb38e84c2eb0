import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

if os.environ.get("BENCH_APPLICATION") == "greenroom":
    from greenroom import get_wsgi_application
else:
    from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
