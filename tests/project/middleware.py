"""Middlewares of every style."""

from __future__ import annotations

from .views import place_now


class Place:
    """Says on the request where the chain ran."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        request.chain_place = place_now()
        return self.get_response(request)
