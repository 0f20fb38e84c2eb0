"""`manage.py greenroom` lists the locks and thread-locals of the project's modules."""

from __future__ import annotations

import json
import sys
import threading
from io import StringIO
from types import ModuleType
from typing import Any

import pytest
from django.core.management import call_command

from greenroom import locks


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("project.locking")
    monkeypatch.setitem(sys.modules, "project.locking", module)
    return module


def found() -> dict[str, str]:
    return {each.name: each.kind for each in locks.find() if "project.locking" in each.name}


def test_each_kind(module: Any) -> None:
    class Tenant(threading.local):
        name = ""

    module.LOCK = threading.Lock()
    module.rlock = threading.RLock()
    module.condition = threading.Condition()
    module.slots = threading.BoundedSemaphore(2)
    module.tenant = Tenant()
    module.count = 3
    module.Lock = threading.Lock
    assert found() == {
        "project.locking.LOCK": "threading.Lock",
        "project.locking.rlock": "threading.RLock",
        "project.locking.condition": "threading.Condition",
        "project.locking.slots": "threading.Semaphore",
        "project.locking.tenant": "threading.local",
    }


def test_once_however_often_it_is_imported(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = ModuleType("project.other_locking")
    monkeypatch.setitem(sys.modules, "project.other_locking", other)
    module.lock = other.lock = threading.Lock()
    assert found() == {"project.locking.lock": "threading.Lock"}


def test_only_of_the_project_and_its_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger: Any = ModuleType("stranger")
    stranger.lock = threading.Lock()
    monkeypatch.setitem(sys.modules, "stranger", stranger)
    names = [each.name for each in locks.find()]
    assert not [
        name
        for name in names
        if name.startswith(("stranger.", "django.", "greenroom.", "logging."))
    ]


def test_the_command_names_them(module: Any) -> None:
    module.rlock = threading.RLock()
    out = StringIO()
    call_command("greenroom", stdout=out)
    assert "  threading.RLock      project.locking.rlock" in out.getvalue().splitlines()
    out = StringIO()
    call_command("greenroom", "--json", stdout=out)
    listed = json.loads(out.getvalue())["locks"]
    assert {"name": "project.locking.rlock", "kind": "threading.RLock"} in listed
