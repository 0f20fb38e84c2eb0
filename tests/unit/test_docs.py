"""The examples in README and docs are run; what they name exists."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.http import HttpResponse, JsonResponse
from django.test import RequestFactory, override_settings

from greenroom import conf
from greenroom.application import AsyncDjangoApplication

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


def test_the_view() -> None:
    made: list[Any] = []

    class Offers:
        async def acreate(self, **values: Any) -> None:
            made.append(values)

    class Objects:
        async def aget(self, pk: int) -> Any:
            return SimpleNamespace(pk=pk, offers=Offers())

    class Client:
        async def post(self, path: str, json: Any) -> Any:
            return SimpleNamespace(json=lambda: {"price": json["article"] * 2})

    view = run(
        blocks("README.md")[1],
        Article=SimpleNamespace(objects=Objects()),
        JsonResponse=JsonResponse,
    )["offer"]
    request = RequestFactory().get("/")
    request.lifespan = Client()
    answer = asyncio.run(view(request, 4))
    assert (answer.content, made) == (b'{"price": 8}', [{"price": 8}])


def test_settings() -> None:
    setting, lifespan, views = blocks("docs/settings.md")
    given = run(setting)["GREENROOM"]
    with override_settings(GREENROOM=given):
        assert len(given) == len(conf.Settings.__slots__)
        assert conf.settings().lifespan == "shop.lifespan.lifespan"

    async def enter() -> str:
        async with run(lifespan)["lifespan"]() as client:
            return str(client.base_url)

    assert asyncio.run(enter()) == "http://127.0.0.1:9000"
    names = run(views)
    response = names["stamp"](lambda request: HttpResponse())(None)
    assert response["X-Stamp"] == "seen"
    assert asyncio.run(names["pay"](None)).content == b"paid"


@pytest.mark.parametrize(
    "path", ["README.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(path: str) -> None:
    file = ROOT / path if path == "README.md" else ROOT / "docs" / path
    for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
        assert (file.parent / target).exists(), target
