"""Which of gunicorn's sockets is for probes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from greenroom.worker import (
    SettingError,
    _bind,
    _logs_accesses,
    _logs_debug,
    _name,
    _options,
    _sockets,
)


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[list[Any]]:
    """As gunicorn keeps them: IPv4, IPv6, Unix."""
    addresses = [
        (socket.AF_INET, ("127.0.0.1", 0), ("localhost", 8000)),
        (socket.AF_INET6, ("::1", 0), None),
        (socket.AF_UNIX, str(tmp_path / "s"), None),
    ]
    found = []
    for family, address, told in addresses:
        sock = socket.socket(family)
        sock.bind(address)
        found.append(SimpleNamespace(sock=sock, cfg_addr=told or _name(sock)))
    yield found
    for each in found:
        each.sock.close()


def test_each_kind_is_found(bound: list[Any]) -> None:
    binds = ["localhost:8000", *(_bind(_name(each.sock)) for each in bound)]
    assert binds[2].startswith("[::1]:")
    assert binds[3].startswith("unix:/")
    for number, bind in zip((0, 0, 1, 2), binds, strict=True):
        sockets, probed = _sockets(bound, bind)
        assert probed is bound[number].sock
        assert sockets == [each.sock for each in bound if each.sock is not probed]


@pytest.mark.parametrize("probes", [None, ""])
def test_without_probes_all_are_the_sites(bound: list[Any], probes: Any) -> None:
    assert _sockets(bound, probes) == ([each.sock for each in bound], None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stall_threshold": "0.1"}, "a number of seconds, 0.01 or more, or None, not '0.1'"),
        ({"stall_threshold": 0.001}, "a number of seconds, 0.01 or more, or None, not 0.001"),
        ({"probes": 8001}, "one of gunicorn's binds, not 8001"),
    ],
)
def test_options_of_a_wrong_kind_are_refused(options: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        _options(SimpleNamespace(coroutine_wsgi_options=options))


def test_options_that_are_good() -> None:
    for threshold in (None, 0, 0.01, 2):
        options = {"stall_threshold": threshold, "probes": None}
        assert _options(SimpleNamespace(coroutine_wsgi_options=options)) == options
    assert _options(object()) == {}


def test_another_is_refused_by_name(bound: list[Any]) -> None:
    with pytest.raises(SettingError) as raised:
        _sockets(bound, "[::1]:1")
    message = str(raised.value)
    for each in bound:
        assert _bind(_name(each.sock)) in message
    first = _bind(_name(bound[0].sock))
    assert message.endswith(
        f"add it to them, as bind = [{first!r}, '[::1]:1'] in gunicorn.conf.py."
    )
    with pytest.raises(SettingError, match="only bind: add one for the site"):
        _sockets(bound[1:2], _bind(_name(bound[1].sock)))
    with pytest.raises(SettingError, match="is no address"):
        _sockets(bound, "127.0.0.1:http")


class Counting(Logger):
    def access(self, *args: Any) -> None:
        pass

    def debug(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize("kind", [Logger, Counting])
@pytest.mark.parametrize("accesslog", [None, "-"])
def test_only_gunicorns_own_logger_without_an_access_log_is_left_alone(
    kind: type[Logger], accesslog: str | None
) -> None:
    config = Config()
    config.set("accesslog", accesslog)
    log = kind(config)
    silent = kind is Logger and accesslog is None and hasattr(Logger, "access_log_enabled")
    assert _logs_accesses(log) is not silent


@pytest.mark.parametrize("kind", [Logger, Counting])
@pytest.mark.parametrize("level", ["debug", "info"])
def test_only_gunicorns_own_logger_on_another_level_is_not_told_of_each_request(
    kind: type[Logger], level: str
) -> None:
    config = Config()
    config.set("loglevel", level)
    assert _logs_debug(kind(config)) is not (kind is Logger and level == "info")
