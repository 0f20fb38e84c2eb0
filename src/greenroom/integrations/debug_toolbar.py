"""django-debug-toolbar: what is of one request is in no other's panels.

Its middleware is on a thread while it shows its panels (`greenroom.placement`), and several
requests are under way while their views wait. The panel of templates and that of tasks note
what is sent by signals of the whole process: here they note what is sent in their own request.
The panel of caches notes the calls of clients that it finds or sees made, which in Django are
of one thread or task; on the loop they are shared: a request that has this panel gets clients
of its own (`cache_clients`).

Replaced: `enable_instrumentation` and the receiver of `TemplatesPanel` and `TasksPanel`,
`CachePanel.disable_instrumentation`.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

from . import when_imported

_cache_panel: Any = None


def apply() -> None:
    for module, kind, receiver in (
        ("templates.panel", "TemplatesPanel", "_store_template_info"),
        ("tasks", "TasksPanel", "_record_task"),
    ):
        when_imported(f"debug_toolbar.panels.{module}", partial(_of_one_request, kind, receiver))
    when_imported("debug_toolbar.panels.cache", _of_caches)


def cache_clients() -> Any:
    """The clients, by alias, of the request whose panel notes their calls, or None."""
    panel = _cache_panel.current_instance() if _cache_panel is not None else None
    return None if panel is None else vars(panel).setdefault(_CLIENTS, SimpleNamespace())


_CLIENTS = "_greenroom_clients"


def _of_one_request(name: str, receiver: str, module: Any) -> None:
    panel: Any = getattr(module, name, None)
    note: Any = getattr(panel, receiver, None)
    if note is None:
        # Of a version that has another.
        return
    enable = panel.enable_instrumentation
    # By id: a context may outlive its request.
    current: ContextVar[int] = ContextVar(f"greenroom_{name}", default=0)

    @wraps(enable)
    def enable_instrumentation(self: Any) -> None:
        current.set(id(self))
        enable(self)

    @wraps(note)
    def noted(self: Any, *args: Any, **named: Any) -> None:
        if current.get() == id(self):
            note(self, *args, **named)

    panel.enable_instrumentation = enable_instrumentation
    setattr(panel, receiver, noted)


def _of_caches(module: Any) -> None:
    global _cache_panel
    panel: Any = module.CachePanel
    disable = panel.disable_instrumentation

    @wraps(disable)
    def disable_instrumentation(self: Any) -> None:
        disable(self)
        clients = vars(self).pop(_CLIENTS, None)
        for client in vars(clients).values() if clients is not None else ():
            client._djdt_panel = None
            client.close()

    panel.disable_instrumentation = disable_instrumentation
    _cache_panel = panel
