"""What docs/worker.md and docs/coroutine-wsgi.md say is what the code does."""

from __future__ import annotations

import inspect
import logging
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config, make_settings
from gunicorn.util import parse_address

from greenroom.server.app import runs_on_loop
from greenroom.threads import Threads
from greenroom.worker import (
    GUNICORNS,
    HONOURED,
    REFUSED,
    SettingError,
    Worker,
    _config,
    _options,
)

TESTS = Path(__file__).resolve().parents[2]
DOCS = TESTS.parent / "docs"
GET = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"

KNOWN = make_settings()


def table(head: str) -> str:
    text = (DOCS / "worker.md").read_text()
    return text.partition(f"| {head} |\n|---|---|\n")[2].partition("\n\n")[0]


def rows(settings: dict[str, str]) -> str:
    return "\n".join(f"| `{name}` | {text} |" for name, text in settings.items())


def test_the_tables_are_those_of_the_code() -> None:
    assert table("setting | what it does here") == rows(HONOURED)
    assert table("refused | because") == rows(REFUSED)
    assert not set(HONOURED) & set(REFUSED)
    # The oldest gunicorn that is supported knows no protocols but one.
    assert set(HONOURED) <= {*KNOWN, "http_protocols"}


def test_every_setting_of_gunicorn_is_in_one_list() -> None:
    """A new one is to be honoured, refused, or found to be gunicorn's own business."""
    for name in KNOWN:
        assert [name in each for each in (HONOURED, REFUSED, GUNICORNS)].count(True) == 1, name


def test_every_row_has_a_test() -> None:
    marks = [
        mark
        for path in sorted(TESTS.rglob("test_*.py"))
        for mark in re.findall(r"^@pytest\.mark\.setting\((.*?)\)$", path.read_text(), re.MULTILINE)
    ]
    names = {name for mark in marks for name in re.findall(r'"(\w+)"', mark)}
    assert set(HONOURED) - names == set()
    assert names <= {*HONOURED, *GUNICORNS}


def test_a_setting_that_is_not_known_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class New:
        value = "default"

        def get(self) -> str:
            return self.value

    config = Config()
    config.settings["brand_new"] = New()
    Worker.check_config(config, logging.getLogger("test.worker"))
    assert caplog.messages == []
    config.settings["brand_new"].value = "other"
    Worker.check_config(config, logging.getLogger("test.worker"))
    assert caplog.messages == [
        "greenroom.Worker doesn't know the setting brand_new: it may have no effect."
    ]


def other(name: str) -> Any:
    """A value of a setting that isn't its default."""
    default = Config().settings[name].get()
    for value in (True, False, 20000, "10.1.2.3", "python", "off", "uvloop", "uwsgi", 3):
        config = Config()
        try:
            config.set(name, value)
        except Exception:
            continue
        if config.settings[name].get() != default:
            return config
    raise AssertionError(f"no other value for {name}")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_by_name(name: str) -> None:
    if name not in KNOWN:
        pytest.skip("not a setting of this gunicorn")
    with pytest.raises(SettingError, match=f"the setting {name} = .*: .*Remove it"):
        Worker.check_config(other(name), None)


def test_other_protocols_are_refused_by_name() -> None:
    config = Config()
    if "http_protocols" not in config.settings:
        pytest.skip("not a setting of this gunicorn")
    Worker.check_config(config, None)
    config.settings["http_protocols"].set("h2,h1")
    with pytest.raises(SettingError, match="http_protocols with h2"):
        Worker.check_config(config, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bodies": 1}, "unknown names: max_bodies. Known are .*, max_body"),
        ({"max_body": "1M"}, r"\['max_body'\] must be a number of bytes, or None"),
        ({"spool_quota": -1}, r"\['spool_quota'\] must be a number of bytes, or None"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    class App:
        coroutine_wsgi_options = options

    with pytest.raises(SettingError, match=message):
        _options(App())


def test_defaults_of_options() -> None:
    text = (DOCS / "coroutine-wsgi.md").read_text()
    config = _config(Config(), {})
    defaults = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE))
    assert defaults.pop("max_body") == f"{config.max_body // 2**20} MiB"
    assert defaults.pop("spool_quota") == f"{config.spool_quota // 2**30} GiB"
    parameters = inspect.signature(Threads).parameters
    assert {name: int(value) for name, value in defaults.items() if name in parameters} == {
        name: parameters[name].default for name in ("max_parked", "queue_timeout")
    }
    config = _config(Config(), {"max_body": None, "spool_quota": 7})
    assert (config.max_body, config.spool_quota) == (None, 7)


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), flags=re.DOTALL)


def test_the_examples_run(drive: Any, tmp_path: Path) -> None:
    apps = []
    for number, source in enumerate(blocks("coroutine-wsgi.md")):
        path = tmp_path / f"example_{number}.py"
        path.write_text(source)
        apps.append(runpy.run_path(str(path), run_name=f"example_{number}")["app"])
    coroutine, flask = apps
    assert runs_on_loop(coroutine)
    assert drive(coroutine, GET).answers[0].body == b"5 bytes\n"
    assert not runs_on_loop(flask)
    get = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert drive(flask, get).answers[0].body == b"hello"


def test_the_configuration_is_gunicorns() -> None:
    worker, bind, settings = blocks("worker.md")
    config, names = Config(), {}
    exec(worker + bind, {}, names)
    for name, value in names.items():
        config.set(name, value)
    Worker.check_config(config, None)
    exec(settings, {}, names)
    assert parse_address(names["GREENROOM"]["PROBES"]) in config.address
