import re
from html.parser import HTMLParser

import httpx
import pytest

from montage.secret import secret_key

PAGES = {
    "/": "Twelve slow services",
    "/montage/": "All at once",
    "/montage/stream/": "As they arrive",
    "/clock/": "The stage clock",
}
LATENCIES = 8.1  # of all twelve together, in seconds
TILES = re.compile(r'<li class="tile slot-(\d+) (\w+)')
TOOK = re.compile(r'data-took="([\d.]+)"')


class Outside(HTMLParser):
    """Collects what a page would load from elsewhere or have inline."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        target = attributes.get("src") or (attributes.get("href") if tag == "link" else None)
        if target is not None and not target.startswith("/static/"):
            self.found.append(target)
        if tag == "style" or (tag == "script" and "src" not in attributes):
            self.found.append(tag)
        self.found += [name for name in attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("path", PAGES)
def test_page(client, path):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert PAGES[path] in response.text
    assert response.text.rstrip().endswith("</html>")


@pytest.mark.parametrize("path", PAGES)
def test_page_needs_nothing_from_elsewhere_and_nothing_inline(client, path):
    outside = Outside()
    outside.feed(client.get(path).text)
    outside.close()
    assert outside.found == []


@pytest.mark.parametrize("path", ["/hello/", "/hello/now/", "/hello/sync/"])
def test_hello(client, path):
    response = client.get(path)
    assert (response.status_code, response.text) == (200, "Hello world!")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/static/montage/montage.css", "text/css"),
        ("/static/montage/montage.js", "text/javascript"),
        ("/static/montage/icon.svg", "image/svg+xml"),
        ("/static/admin/css/base.css", "text/css"),
    ],
)
def test_static_files(client, path, kind):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(kind)
    assert len(response.content) == int(response.headers["content-length"])


@pytest.mark.parametrize(
    "path", ["/static/%2e%2e/settings.py", "/static/..%2f..%2fsettings.py", "/static/montage/"]
)
def test_nothing_but_static_files(client, path):
    response = client.get(path)
    assert response.status_code in (400, 404)
    assert "SECRET_KEY" not in response.text


def test_not_found_is_a_page(client):
    response = client.get("/montage/?board=nowhere")
    assert response.status_code == 404
    assert "There is no such board" in response.text
    assert "There is no such page." in client.get("/nowhere/").text


def test_foreign_host_is_refused(client):
    assert client.get("/", headers={"host": "montage.example"}).status_code == 400


def test_montage_is_as_slow_as_the_slowest(client):
    page = client.get("/montage/").text
    assert [slot for slot, _ in TILES.findall(page)] == [str(n) for n in range(1, 13)]
    assert float(TOOK.search(page)[1]) < LATENCIES / 3
    assert "No answer" not in page


def test_both_ways_are_compared(client):
    together = client.get("/montage/?board=on-the-way")
    one_by_one = client.get("/montage/sync/?board=on-the-way")
    assert TILES.findall(one_by_one.text) == TILES.findall(together.text)
    fast, slow = (float(TOOK.search(page.text)[1]) for page in (together, one_by_one))
    assert slow >= 3.5  # the sum of five latencies
    assert fast < slow / 2
    for path in ("/montage/", "/montage/sync/", "/montage/stream/"):
        page = client.get(path, params={"board": "on-the-way"}).text
        assert "×</b> as fast" in page


def test_services_in_trouble_cost_their_tile_and_not_the_page(client):
    response = client.get("/montage/?fail=tide&slow=air")
    page = response.text
    assert response.status_code == 200
    assert len(TILES.findall(page)) == 12
    tiles = dict(re.findall(r'<li class="tile slot-\d+ (\w+)(.*?)\n</li>', page, re.DOTALL))
    assert "It answered with status 503." in tiles.pop("tide")
    assert "No answer within 2 seconds." in tiles.pop("air")
    assert not any("failed" in tile for tile in tiles.values())
    assert 2 <= float(TOOK.search(page)[1]) < LATENCIES / 2
    assert "2 have no answer" in page


def test_trouble_on_the_page_that_asks_one_by_one(client):
    response = client.get("/montage/sync/?board=on-the-way&fail=tide")
    assert response.status_code == 200
    assert "It answered with status 503." in response.text


def test_upstream_is_not_taken_from_the_host_header(client):
    page = client.get("/montage/?board=on-the-way", headers={"host": "localhost:1"}).text
    assert len(TILES.findall(page)) == 5
    assert "failed" not in page


@pytest.mark.parametrize(("path", "status"), [("tide/", 200), ("tide/?fail", 503), ("no/", 404)])
def test_upstream(client, path, status):
    response = client.get(f"/upstream/{path}")
    assert response.status_code == status
    if status == 200:
        assert response.json()["service"] == "tide"


def test_head(client):
    response = client.head("/")
    assert (response.status_code, response.content) == (200, b"")


def test_fill_twice_changes_nothing(site, client):
    again = site.manage("fill")
    assert "User “demo” is there." in again.stdout
    assert "WARNING: demo/demo may do everything" in again.stderr
    assert len(TILES.findall(client.get("/montage/?board=on-the-way").text)) == 5


def test_checks_and_migrations(site):
    site.manage("check", "--fail-level=WARNING")
    site.manage("makemigrations", "--check", "--dry-run")


def test_secret_key_is_made_once(tmp_path):
    path = tmp_path / "secret"
    key = secret_key(path)
    assert len(key) >= 50
    assert secret_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_policy_forbids_what_is_not_ours(client):
    policy = client.get("/").headers.get("content-security-policy", "")
    django = pytest.importorskip("django")
    if django.VERSION < (6, 0):
        pytest.skip("Django sends a policy since 6.0")
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_errors_are_answered_and_logged(site):
    with site.client() as client, pytest.raises(httpx.HTTPStatusError):
        client.get("/upstream/stage/?fail").raise_for_status()
    assert "Service Unavailable: /upstream/stage/" in site.log.read_text()
