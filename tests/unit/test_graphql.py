"""strawberry's views need nothing: plain resolvers of the asynchronous view may query."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from driver import Site


@pytest.fixture
def graph(placement: str) -> Iterator[Site]:
    pytest.importorskip("strawberry")
    call_command("migrate", verbosity=0)
    Session.objects.all().delete()
    for key in ("a", "b"):
        Session.objects.create(session_key=key, session_data="", expire_date=timezone.now())
    connection.close()
    with Site(placement, ROOT_URLCONF="project.urls_graphql") as site:
        yield site
    connection.close()


def ask(graph: Site, query: str, path: str = "/graphql/") -> dict[str, Any]:
    body = json.dumps({"query": query}).encode()
    answer = graph.get(path, "POST", body, CONTENT_TYPE="application/json")
    assert answer.code == 200
    return dict(json.loads(answer.body))


def test_resolvers_of_both_kinds(graph: Site) -> None:
    answer = ask(graph, "{ rows { key older } count first }")
    rows = [{"key": "a", "older": 0}, {"key": "b", "older": 1}]
    assert answer == {"data": {"rows": rows, "count": 2, "first": "a"}}


def test_coroutine_resolvers_at_once(graph: Site) -> None:
    fields = " ".join(f"c{number}: count f{number}: first" for number in range(10))
    data = ask(graph, f"{{ {fields} }}")["data"]
    assert set(data.values()) == {2, "a"}
    assert len(data) == 20


def test_a_transaction(graph: Site) -> None:
    assert ask(graph, 'mutation { make(key: "c") { key } }')["data"] == {"make": {"key": "c"}}
    failed = ask(graph, 'mutation { make(key: "bad") { key } }')
    assert failed["errors"][0]["message"] == "refused"
    assert set(Session.objects.values_list("pk", flat=True)) == {"a", "b", "c"}


def test_the_plain_view(graph: Site) -> None:
    answer = ask(graph, "{ rows { key } }", "/plain/")
    assert answer == {"data": {"rows": [{"key": "a"}, {"key": "b"}]}}
