"""The live server in a real browser, for tests/unit/test_clients.py."""

import os
import shutil

from playwright.sync_api import sync_playwright

from greenroom.test import StaticLiveServerTestCase

from .models import Author

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


class BrowserTests(StaticLiveServerTestCase):
    def test_a_page(self):
        Author.objects.create(name="Ada")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=FLAGS
            )
            page = browser.new_page()
            page.goto(f"{self.live_server_url}/add/Eve/")
            self.assertIn('"authors": 2', page.content())
            browser.close()
        self.assertEqual(Author.objects.count(), 2)
        assert "DJANGO_ALLOW_ASYNC_UNSAFE" not in os.environ
