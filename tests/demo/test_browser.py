"""The demo in a real browser: Debian's Chromium, driven by Playwright's core."""

import contextlib
import re
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def page(browser, site, **options):
    """A page that fails the test if the browser reports an error."""
    context = browser.new_context(base_url=site.url, **options)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: errors.append(message.text) if message.type == "error" else None,
    )
    yield page
    context.close()
    assert errors == []


@pytest.mark.parametrize("path", ["/montage/", "/montage/stream/"])
@pytest.mark.parametrize("options", [{}, {"viewport": PHONE}], ids=["desktop", "phone"])
def test_a_montage_shows_every_tile(browser, site, path, options):
    with page(browser, site, **options) as tab:
        tab.goto(path)
        expect(tab.get_by_text("High water")).to_be_visible()
        expect(tab.get_by_text("Council finds the missing benches")).to_be_visible()
        wide = tab.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        assert not wide, "the page scrolls sideways"


def test_the_clock_ticks(browser, site):
    with page(browser, site) as tab:
        # An open event stream never lets the network fall idle.
        tab.goto("/clock/", wait_until="commit")
        times = set()
        for _ in range(60):
            times.update(re.findall(r"\d\d:\d\d:\d\d", tab.inner_text("body")))
            if len(times) >= 3:
                break
            tab.wait_for_timeout(100)
        assert len(times) >= 3


def test_the_admin_lets_in_who_knows_the_password(browser, site):
    with page(browser, site) as tab:
        tab.goto("/admin/")
        tab.fill("input[name=username]", "demo")
        tab.fill("input[name=password]", "demo")
        tab.click("input[type=submit]")
        tab.click("a:has-text('Boards')")
        expect(tab.get_by_role("link", name="Everything")).to_be_visible()


def test_seats_are_booked_in_the_browsable_api(browser, site):
    # Not `page`: its jQuery tries an inline handler, which the policy forbids, and says so.
    with contextlib.closing(browser.new_context(base_url=site.url)) as context:
        tab = context.new_page()
        tab.goto("/api/auth/login/?next=/api/performances/")
        tab.fill("input[name=username]", "guest")
        tab.fill("input[name=password]", "guest")
        tab.click("input[type=submit]")
        expect(tab.get_by_role("heading", name="Performances")).to_be_visible()
        tab.get_by_role("button", name="Filters").click()
        expect(tab.get_by_text("So many free seats at least")).to_be_visible()
        tab.goto("/api/performances/1/book/")
        tab.fill("textarea[name=_content]", '{"seats": 1}')
        tab.get_by_role("button", name="POST").click()
        expect(tab.get_by_text("HTTP 201 Created")).to_be_visible()
