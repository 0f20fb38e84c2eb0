"""What docs/worker.md and docs/coroutine-wsgi.md say is what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config, make_settings

from greenroom.server.app import runs_on_loop
from greenroom.worker import HONOURED, REFUSED, SettingError, Worker

DOCS = Path(__file__).resolve().parents[3] / "docs"
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
    (source,) = blocks("worker.md")
    config, names = Config(), {}
    exec(source, {}, names)
    for name, value in names.items():
        config.set(name, value)
    Worker.check_config(config, None)
