"""Fill what the scenario has of databases and caches; print the cookie of a session."""

import datetime
import importlib
import os

import django
from django.conf import settings
from django.core.management import call_command

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")


def main() -> None:
    django.setup()
    data = {"visits": 7}
    if "BENCH_DATABASE" in os.environ:
        data |= database()
    engine = importlib.import_module(settings.SESSION_ENGINE)
    session = engine.SessionStore()
    session.update(data)
    session.save()
    print(f"{settings.SESSION_COOKIE_NAME}={session.session_key}")


def database() -> dict[str, object]:
    from articles.models import Article
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.auth.models import User

    call_command("migrate", verbosity=0, run_syncdb=True)
    published = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    Article.objects.bulk_create(
        Article(id=n, title=f"Article {n}", body="Some text. " * 20, price=n, published=published)
        for n in range(1, 21)
    )
    user = User.objects.create_user("ada", first_name="Ada", last_name="Lovelace")
    return {
        SESSION_KEY: str(user.pk),
        BACKEND_SESSION_KEY: settings.AUTHENTICATION_BACKENDS[0],
        HASH_SESSION_KEY: user.get_session_auth_hash(),
    }


if __name__ == "__main__":
    main()
