"""django-ninja needs nothing: its coroutine operations run on the loop, with the ORM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from driver import Site


@pytest.fixture(autouse=True)
def _rows() -> Iterator[None]:
    call_command("migrate", verbosity=0)
    Session.objects.all().delete()
    for key in ("a", "b", "c"):
        Session.objects.create(session_key=key, session_data="", expire_date=timezone.now())
    cache.clear()
    connection.close()
    yield
    connection.close()


@pytest.fixture
def api(placement: str) -> Iterator[Site]:
    pytest.importorskip("ninja")
    with Site(placement, ROOT_URLCONF="project.urls_ninja") as site:
        yield site


def answer(api: Site, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
    extra = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    made = api.get(f"/api{path}", method, **extra)
    return made.code, json.loads(made.body)


def keys() -> set[str]:
    found = set(Session.objects.values_list("pk", flat=True))
    connection.close()
    return found


def test_operations_of_both_kinds(api: Site) -> None:
    assert answer(api, "/rows/async/a") == (200, {"key": "a", "place": "loop"})
    assert answer(api, "/rows/plain/b") == (200, {"key": "b", "place": "thread"})


def test_both_kinds_at_one_path(api: Site) -> None:
    assert answer(api, "/both/x") == (200, {"count": 3, "place": "loop"})
    assert answer(api, "/both/x", "POST") == (200, {"session_key": "x"})
    assert answer(api, "/both/y")[1]["count"] == 4


def test_a_transaction(api: Site) -> None:
    assert answer(api, "/move/m", "POST") == (200, {"session_key": "m"})
    assert keys() == {"a", "b", "c", "m", "m-done"}
    assert answer(api, "/move/n?fails=1", "POST") == (409, {"detail": "in a transaction: True"})
    assert keys() == {"a", "b", "c", "m", "m-done"}


def test_auth_of_both_kinds(api: Site) -> None:
    assert answer(api, "/plain-auth", authorization="Bearer b") == (200, {"by": "b"})
    assert answer(api, "/plain-auth", authorization="Bearer no")[0] == 401
    assert answer(api, "/async-auth", x_key="c") == (200, {"by": "c"})
    assert answer(api, "/async-auth", x_key="no")[0] == 401
    assert answer(api, "/async-auth")[0] == 401


def test_throttles(api: Site) -> None:
    assert [answer(api, "/throttled")[0] for _ in range(3)] == [200, 200, 429]


def test_pages(api: Site) -> None:
    code, page = answer(api, "/pages?limit=2&offset=1")
    assert (code, page["count"]) == (200, 3)
    assert [item["session_key"] for item in page["items"]] == ["b", "c"]


def test_exception_handlers(api: Site) -> None:
    assert answer(api, "/errors") == (404, {"absent": True})


def test_its_schema_is_the_same(api: Site) -> None:
    code, schema = answer(api, "/openapi.json")
    assert code == 200
    assert set(schema["paths"]["/api/both/{key}"]) == {"get", "post"}


def test_concurrent_requests(api: Site) -> None:
    async def main(site: Site) -> list[int]:
        answers = await asyncio.gather(
            *(site.ask(f"/api/move/k{number}", "POST") for number in range(20))
        )
        return [answer.code for answer in answers]

    assert api.run(main) == [200] * 20
    assert len(keys()) == 3 + 40
