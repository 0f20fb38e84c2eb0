import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "montage.settings")

from greenroom import AsyncDjangoApplication  # noqa: E402

application = AsyncDjangoApplication()
