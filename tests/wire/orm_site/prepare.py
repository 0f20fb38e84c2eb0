"""Fills the database of this project: ``python -m orm_site.prepare PASSWORD``.

The password is that of the superuser. Prints the keys of sessions in which somebody is
logged in, one a line.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "orm_site.settings")

COUNTERS = 8
USERS = 20


def main() -> None:
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.test import Client

    from .models import Counter

    call_command("migrate", run_syncdb=True, verbosity=0)
    Counter.objects.bulk_create(Counter(name=f"c{index}") for index in range(COUNTERS))
    User.objects.create_superuser("admin", password=sys.argv[1])
    for index in range(USERS):
        client = Client()
        client.force_login(User.objects.create_user(f"user{index}"))
        print(client.cookies["sessionid"].value)


if __name__ == "__main__":
    main()
