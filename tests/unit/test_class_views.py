"""Mixins and decorators that know no coroutines, around views that are some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.contrib.sessions.backends.db import SessionStore
from django.core.cache import cache
from django.core.management import call_command
from django.db import connection

from driver import Answer, Site
from project import urls_classes

MIDDLEWARE = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [
                (
                    "django.template.loaders.locmem.Loader",
                    {"page.html": "{{ view.request.user.username }} of {{ count }}"},
                )
            ]
        },
    }
]


@pytest.fixture
def site(placement: str) -> Iterator[Site]:
    call_command("migrate", verbosity=0)
    User.objects.all().delete()
    Group.objects.all().delete()
    cache.clear()
    urls_classes.counted.clear()
    connection.close()
    with Site(
        placement,
        middleware=MIDDLEWARE,
        ROOT_URLCONF="project.urls_classes",
        TEMPLATES=TEMPLATES,
        GREENROOM={"LOOP_SAFE": []},
    ) as site:
        yield site
    connection.close()


def session_of(**values: Any) -> dict[str, str]:
    """The headers of somebody who is logged in."""
    user = User.objects.create_user("ada", password="pw", **values)
    store = SessionStore()
    store["_auth_user_id"] = str(user.pk)
    store["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
    store["_auth_user_hash"] = user.get_session_auth_hash()
    store.save()
    connection.close()
    return {"HTTP_COOKIE": f"sessionid={store.session_key}"}


def get(site: Site, path: str, method: str = "GET", **extra: Any) -> Answer:
    return site.get(path, method, **extra)


def test_login_required_mixin(site: Site, placement: str) -> None:
    refused = get(site, "/private/")
    assert (refused.code, refused.header("Location")) == (302, "/accounts/login/?next=/private/")
    assert get(site, "/private/", **session_of()).text == "ada loop"
    assert site.app.handler.judge.place(urls_classes.Private.as_view()).on_loop == (
        placement == "loop"
    )


def test_permission_required_mixin(site: Site) -> None:
    headers = session_of()
    assert get(site, "/permitted/", **headers).code == 403
    User.objects.get().user_permissions.add(Permission.objects.get(codename="view_user"))
    connection.close()
    assert get(site, "/permitted/", **headers).text == "1 loop"


def test_a_test_that_queries(site: Site) -> None:
    headers = session_of()
    assert get(site, "/tested/").code == 403
    assert get(site, "/tested/", **headers).code == 403
    User.objects.get().groups.add(Group.objects.create(name="testers"))
    connection.close()
    assert get(site, "/tested/", **headers).text == "tested"


def test_decorators_of_methods(site: Site) -> None:
    assert get(site, "/decorated/").code == 302
    answer = get(site, "/decorated/", **session_of())
    assert answer.text == "ada"
    assert "no-store" in str(answer.header("Cache-Control"))


def test_a_deferred_template(site: Site) -> None:
    assert get(site, "/page/", **session_of()).text == "ada of "


def test_cache_page_over_a_coroutine(site: Site) -> None:
    assert [get(site, "/cached/").text for _ in range(3)] == ["1", "1", "1"]


def test_atomic_over_a_coroutine(site: Site) -> None:
    assert get(site, "/in-transaction/").code == 405
    assert get(site, "/in-transaction/", "POST").text == "True"
    User.objects.all().delete()
    connection.close()
    assert get(site, "/in-transaction/?fail=1", "POST").code == 500
    assert not User.objects.exists()
