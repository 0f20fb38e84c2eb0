import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "montage.settings")

from greenroom import AsyncDjangoApplication

application = AsyncDjangoApplication()
