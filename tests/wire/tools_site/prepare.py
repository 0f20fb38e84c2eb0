"""Fills the database of this project: users who log in with "secret", and books.

Prints the keys of sessions in which somebody is logged in, one a line. With the argument
"books" it makes nothing but them.
"""

import os
import sys
from unittest import mock

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tools_site.settings")

USERS = 6


def main() -> None:
    import django
    from django.db.migrations.loader import MigrationLoader

    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client

    from .models import Book

    if sys.argv[1:] == ["books"]:
        with connection.schema_editor() as editor:
            editor.create_model(Book)
        make_books(Book)
        return
    # All tables at once, which takes a second less than the migrations of all apps.
    with mock.patch.object(MigrationLoader, "migrations_module", return_value=(None, True)):
        call_command("migrate", run_syncdb=True, verbosity=0)
    make_books(Book)
    User.objects.create_user("inactive", password="secret", is_active=False)
    for index in range(USERS):
        client = Client()
        client.force_login(User.objects.create_user(f"user{index}", password="secret"))
        print(client.cookies["sessionid"].value)


def make_books(model):
    model.objects.bulk_create(model(title=f"book {year}", year=year) for year in range(1990, 2000))


if __name__ == "__main__":
    main()
