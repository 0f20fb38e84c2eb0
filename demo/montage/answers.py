"""Asking the services, in the two ways that this site compares.

An `Answer` is made for every tile, whatever became of the service: a service that fails costs
the page its tile, never the page.
"""

from dataclasses import dataclass
from time import monotonic

import httpx
from django.conf import settings

from .models import Tile


@dataclass(frozen=True)
class Answer:
    tile: Tile
    slot: int  # its place on the board, from 1
    began: float  # seconds since the page began
    ended: float
    data: dict | None = None
    error: str = ""

    @property
    def took(self) -> float:
        return self.ended - self.began


class Asking:
    """One page's round of the services. `trouble` maps a service to "fail" or "slow"."""

    def __init__(self, trouble):
        self.trouble = trouble
        self.started = monotonic()

    def elapsed(self):
        return monotonic() - self.started

    async def ask(self, client: httpx.AsyncClient, slot, tile) -> Answer:
        began = self.elapsed()
        try:
            outcome = _read(await client.get(self._url(tile)))
        except httpx.HTTPError as exc:
            outcome = _failed(exc)
        return Answer(tile, slot, began, self.elapsed(), **outcome)

    def ask_and_wait(self, client: httpx.Client, slot, tile) -> Answer:
        began = self.elapsed()
        try:
            outcome = _read(client.get(self._url(tile)))
        except httpx.HTTPError as exc:
            outcome = _failed(exc)
        return Answer(tile, slot, began, self.elapsed(), **outcome)

    def _url(self, tile):
        trouble = self.trouble.get(tile.service)
        return f"/upstream/{tile.service}/" + (f"?{trouble}" if trouble else "")


def _read(response):
    response.raise_for_status()
    try:
        return {"data": response.json()["data"]}
    except (ValueError, KeyError, TypeError):
        return {"error": "Its answer could not be read."}


def _failed(exc):
    if isinstance(exc, httpx.TimeoutException):
        return {"error": f"No answer within {settings.MONTAGE_TIMEOUT:g} seconds."}
    if isinstance(exc, httpx.HTTPStatusError):
        return {"error": f"It answered with status {exc.response.status_code}."}
    return {"error": "It could not be reached."}
