"""The tools, set up as docs/tools.md has it; and what views ask of either."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

TOOL = os.environ.get("TRACED", "")
HOW = os.environ.get("TRACED_HOW", "")
MODULE = {"sentry": "sentry_sdk"}.get(TOOL, TOOL)

_DOCS = Path(__file__).resolve().parents[3] / "docs" / "tools.md"


def example(word):
    """The example of the documentation that has this word."""
    found = re.findall(r"```python\n(.*?)```", _DOCS.read_text(), flags=re.DOTALL)
    (source,) = (each for each in found if word in each)
    return source


def begin():
    """In the settings."""
    if TOOL == "sentry":
        import sentry_sdk

        sentry_sdk.init(
            dsn=os.environ["SITE_DSN"],
            traces_sample_rate=1.0,
            send_default_pii=True,
            # More than a hundred that wait to be sent are thrown away.
            transport_queue_size=1000,
        )


def instrument():
    """In ``wsgi.py``, before the application is made."""
    if TOOL != "opentelemetry":
        return
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

    source, _, _ = example("BatchSpanProcessor").partition("from greenroom")
    if HOW == "wrapper":
        source = source.replace("DjangoInstrumentor().instrument()", "")
    exec(source, {})
    HTTPXClientInstrumentor().instrument()


def wrap(application):
    """Around the application, if that is how."""
    if HOW != "wrapper":
        return application
    if TOOL == "sentry":
        from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware

        return SentryWsgiMiddleware(application)
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(application)


@contextlib.asynccontextmanager
async def lifespan():
    """On the loop, before it serves."""
    if TOOL != "sentry":
        yield
        return
    namespace = {}
    exec(example("enable_asyncio_integration"), namespace)
    async with namespace["lifespan"]():
        yield


def share_a_context():
    """Break what keeps requests apart, for a test of the tests."""
    from contextvars import Context

    from greenroom.server import Server

    context = Context()

    class Copies:
        def copy(self):
            return context

    begin = Server.__init__

    def __init__(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.context = Copies()

    Server.__init__ = __init__


@contextlib.contextmanager
def span(name):
    if TOOL == "sentry":
        import sentry_sdk

        with sentry_sdk.start_span(op="test", name=name):
            yield
    else:
        from opentelemetry import trace

        with trace.get_tracer("traced_site").start_as_current_span(name):
            yield


def note(key, token):
    """Leave something of this request's in what it shares with all that works for it."""
    if TOOL == "sentry":
        import sentry_sdk

        sentry_sdk.add_breadcrumb(category="test", message=f"{key} {token}")
    else:
        from opentelemetry import trace

        trace.get_current_span().add_event(f"{key} {token}")


def whose(token):
    if TOOL == "sentry":
        import sentry_sdk

        sentry_sdk.set_user({"id": token})
        sentry_sdk.set_tag("token", token)
    else:
        from opentelemetry import trace

        trace.get_current_span().set_attribute("token", token)
