"""Makes the tables of this project, and users: ``python -m traced_site.prepare NAME…``.

Prints the keys of sessions in which they are logged in, one a line.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "traced_site.settings")


def main() -> None:
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.test import Client

    call_command("migrate", verbosity=0, skip_checks=True)
    for name in sys.argv[1:]:
        client = Client()
        client.force_login(User.objects.create_user(name))
        print(client.cookies["sessionid"].value)


if __name__ == "__main__":
    main()
