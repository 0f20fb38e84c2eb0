"""The examples in README and docs are run; what they name exists."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from django.db import connection
from django.db.models import F
from django.http import HttpResponse
from django.test import RequestFactory, override_settings

import greenroom
from driver import Site
from greenroom import bridge, conf
from greenroom.application import AsyncDjangoApplication
from greenroom.shutdown import ShuttingDown

ROOT = Path(__file__).resolve().parents[2]


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def run(source: str, **names: Any) -> dict[str, Any]:
    namespace: dict[str, Any] = dict(names)
    exec(compile(source, "documentation", "exec"), namespace)
    return namespace


def test_the_three_lines() -> None:
    settings, wsgi, gunicorn = re.findall(
        r"(?:# \S+\.py.*\n)((?:[^#].*\n)+)", blocks("README.md")[0]
    )
    assert run(settings)["INSTALLED_APPS"][0] == "greenroom"
    assert isinstance(run(wsgi)["application"], AsyncDjangoApplication)
    from gunicorn.util import load_class

    from greenroom.worker import Worker

    assert load_class(run(gunicorn)["worker_class"]) is Worker


class Asked:
    """A service, or a model, that notes what it is asked, and whether in a transaction."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def note(self, *what: Any) -> None:
        # A real query, on the connection of the transaction.
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        self.notes.append((*what, connection.in_atomic_block))

    @property
    def objects(self) -> Any:
        return SimpleNamespace(select_for_update=lambda: SimpleNamespace(get=self.get))

    def get(self, pk: int) -> Any:
        self.note("get", pk)
        invoices = SimpleNamespace(create=lambda ref: self.note("invoice", ref))
        customer = SimpleNamespace(invoices=invoices, name="Ada")
        return SimpleNamespace(customer=customer, save=lambda: self.note("save"))

    async def post(self, path: str, json: Any) -> Any:
        await asyncio.sleep(0)
        return SimpleNamespace(json=lambda: {"id": json["order"] * 2})


def answer_of(view: Any, *args: Any) -> Any:
    """What the view answers on the loop."""

    async def call() -> Any:
        return await view(*args)

    async def main(site: Site) -> Any:
        return await asyncio.create_task(bridge.bridged(call)())

    with Site("loop") as site:
        return site.run(main)


def test_the_view() -> None:
    asked = Asked()
    request = RequestFactory().get("/")
    request.lifespan = asked
    answer = answer_of(run(blocks("README.md")[1], Order=asked)["pay"], request, 4)
    assert answer.content == b'{"ok": true}'
    assert asked.notes == [("get", 4, True), ("invoice", 8, True)]


def test_the_database() -> None:
    pay, move, setting = blocks("docs/database.md")
    asked, receipts = Asked(), []
    names = {"Order": asked, "payments": asked, "receipts": receipts}
    answer = answer_of(run(pay, **names)["pay"], None, 4)
    assert answer.content == b'{"customer": "Ada"}'
    assert (asked.notes, receipts) == ([("get", 4, True), ("save", True)], [8])

    updates: list[Any] = []

    class Account:
        class objects:
            @staticmethod
            def filter(pk: int) -> Any:
                async def aupdate(balance: Any) -> None:
                    updates.append((pk, str(balance), connection.in_atomic_block))

                return SimpleNamespace(aupdate=aupdate)

    moved = run(move, Account=Account, F=F, greenroom=greenroom)["move"]
    answer_of(moved, 1, 2, 30)
    assert updates == [(1, "F(balance) - Value(30)", True), (2, "F(balance) + Value(30)", True)]
    with override_settings(GREENROOM=run(setting)["GREENROOM"]):
        assert conf.settings().db_lease_of("default") == "request"


def test_frameworks() -> None:
    account, report = blocks("docs/frameworks.md")
    names = run(account)
    request = RequestFactory().get("/")
    request.user = SimpleNamespace(username="ada", is_authenticated=True)
    assert answer_of(names["Account"].as_view(), request).content == b"ada"
    request.user = SimpleNamespace(is_authenticated=False)
    refused = names["Account"].as_view()(request)
    assert refused.status_code == 302
    with Site("loop") as site:
        placement = site.app.handler.judge.place(run(report)["report"])
    assert not placement.on_loop
    assert placement.coroutine


def test_other_servers() -> None:
    asgi, wsgi = blocks("docs/other-servers.md")
    assert isinstance(run(asgi)["application"], greenroom.AsyncDjangoASGIApplication)
    assert isinstance(run(wsgi)["application"], AsyncDjangoApplication)


def test_settings() -> None:
    setting, lifespan, events, views = blocks("docs/settings.md")
    given = run(setting)["GREENROOM"]
    with override_settings(GREENROOM=given):
        assert len(given) == len(conf.Settings.__slots__)
        assert conf.settings().lifespan == "shop.lifespan.lifespan"

    async def enter() -> str:
        async with run(lifespan)["lifespan"]() as client:
            return str(client.base_url)

    assert asyncio.run(enter()) == "http://127.0.0.1:9000"
    asyncio.run(listen(run(events)["events"]))
    names = run(views)
    response = names["stamp"](lambda request: HttpResponse())(None)
    assert response["X-Stamp"] == "seen"
    assert asyncio.run(names["pay"](None)).content == b"paid"


async def listen(events: Any) -> None:
    """To the end, which is told after the first item."""
    ending = ShuttingDown()
    with mock.patch.object(greenroom, "shutting_down", return_value=ending):
        response = await events(None)
        items = aiter(response)
        assert await anext(items) == b"event: tick\n\n"
        rest = asyncio.create_task(anext(items, None))
        await asyncio.sleep(0.01)
        assert not rest.done()
        ending.set()
        assert await rest is None


@pytest.mark.parametrize(
    "path", ["README.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(path: str) -> None:
    file = ROOT / path if path == "README.md" else ROOT / "docs" / path
    for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
        assert (file.parent / target).exists(), target
