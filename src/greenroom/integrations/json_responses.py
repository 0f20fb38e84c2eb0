"""Responses of Django REST framework that are rendered on the loop: JSON, and no code but DRF's.

Others are rendered on a thread, since rendering calls code that nobody read. That costs more than
most JSON does, and spares the loop nothing: the encoder is C, which keeps every other thread from
running until it is done.

What JSON doesn't know is given to DRF's encoder, which asks it for what it is made of. Here that
is done for the types of `KNOWN`; at any other, rendering begins anew on a thread. (A subclass of
`dict` is asked for its `items()`: it is the view's, as what it calls itself.)

Relied on of DRF (3.18 was read): `Response.accepted_renderer`, `accepted_media_type` and
`rendered_content`, `JSONRenderer.encoder_class`; of Django: `SimpleTemplateResponse.render` and
`_post_render_callbacks`.
"""

from __future__ import annotations

import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from . import rendered_by, when_imported
from .awaiting import Method

KNOWN = frozenset({date, datetime, time, timedelta, Decimal, UUID})


def apply() -> None:
    when_imported("rest_framework.renderers", _renderers)


class _UnknownType(Exception):
    """Something in the data is of a type whose code was not read."""


def _renderers(module: Any) -> None:
    kind = module.JSONRenderer
    written, encoder = kind.render, kind.encoder_class

    class Encoder(encoder):  # type: ignore[misc,valid-type]
        def default(self, obj: Any) -> Any:
            if type(obj) not in KNOWN:
                raise _UnknownType
            return super().default(obj)

    class Renderer(kind):  # type: ignore[misc,valid-type]
        encoder_class = Encoder

    # It has no state.
    on_loop = Renderer()

    def render(response: Any) -> bool:
        renderer: Any = getattr(response, "accepted_renderer", None)
        if (
            type(renderer) is not kind
            or type(response) is not sys.modules["rest_framework.response"].Response
            or kind.render is not written
            or kind.encoder_class is not encoder
            # Without parameters: with an indentation it is Python that encodes.
            or getattr(response, "accepted_media_type", None) != renderer.media_type
            or response._post_render_callbacks
            or not all(map(_is_as_written, renderer.__dict__.values()))
        ):
            return False
        response.accepted_renderer = on_loop
        try:
            response.render()
        except _UnknownType:
            return False
        finally:
            response.accepted_renderer = renderer
        return True

    rendered_by(render)


def _is_as_written(attribute: Any) -> bool:
    """Whether what an instance has of its own is the method of its class."""
    return isinstance(attribute, Method) and attribute.own is None
