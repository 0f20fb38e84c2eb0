"""What is local to a request crosses with it, and never reaches another."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver import Answer, Site

STATES = {
    "de": {
        "language": "de",
        "zone": "Europe/Berlin",
        "prefix": "/de/",
        "urlconf": "project.urls_de",
        "variable": "de",
    },
    "fr": {
        "language": "fr",
        "zone": "Europe/Paris",
        "prefix": "/fr/",
        "urlconf": "project.urls_fr",
        "variable": "fr",
    },
    None: {
        "language": "en",
        "zone": "America/Chicago",
        "prefix": "/",
        "urlconf": "project.urls",
        "variable": "unset",
    },
}


def path_for(word: str | None, view: str = "crossing", change: str | None = None) -> str:
    query = "&".join(
        f"{key}={value}" for key, value in (("word", word), ("set", change)) if value is not None
    )
    return f"/{view}/?{query}"


def check(answer: Answer, word: str | None, change: str | None = None) -> None:
    for seen in json.loads(answer.text)["seen"]:
        assert seen == STATES[word]
    after = change or word
    assert answer.header("X-After") == (f"{after} {after}" if word else None)


@pytest.fixture
def crossing_site(site: Site) -> Site:
    site.use("project.middleware.Sets")
    return site


@pytest.mark.parametrize("word", [None, "de", "fr"])
@pytest.mark.parametrize("view", ["crossing", "plain-crossing"])
def test_set_by_a_middleware_seen_in_the_view(
    crossing_site: Site, word: str | None, view: str
) -> None:
    check(crossing_site.get(path_for(word, view)), word)


def test_changed_in_the_view_seen_in_the_response_phase(crossing_site: Site) -> None:
    check(crossing_site.get(path_for("de", change="fr")), "de", "fr")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    words=st.lists(
        st.tuples(
            st.sampled_from([None, "de", "fr"]),
            st.sampled_from(["crossing", "plain-crossing"]),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_interleaved_requests_never_see_each_other_s(
    crossing_site: Site, words: list[tuple[str | None, str]]
) -> None:
    async def main(site: Site) -> list[Answer]:
        return await asyncio.gather(*(site.ask(path_for(word, view)) for word, view in words))

    for (word, _), answer in zip(words, crossing_site.run(main), strict=True):
        check(answer, word)


def test_nothing_stays_for_the_next_request_of_a_task(crossing_site: Site) -> None:
    """Keep-alive: requests of one connection may share the task's outer context."""

    async def main(site: Site) -> None:
        for word in ("de", None, "fr", None):
            check(await site.ask(path_for(word)), word)
            check(await site.ask(path_for(word, "plain-crossing")), word)

    crossing_site.run(main)
