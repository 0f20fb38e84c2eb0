"""Tests as a project has them: nothing here is greenroom's, but where it says so."""

import asyncio
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from io import BytesIO
from unittest import mock

import httpx
from django.contrib.auth.models import User
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections
from django.test import (
    AsyncClient,
    AsyncRequestFactory,
    Client,
    LiveServerTestCase,
    RequestFactory,
    SimpleTestCase,
    TestCase,
    TransactionTestCase,
    override_settings,
)
from django.test.testcases import LiveServerThread
from django.utils import translation
from rest_framework.test import APIClient, APIRequestFactory, APITestCase, force_authenticate

import greenroom
from greenroom.test import LiveServerTestCase as OurLiveServerTestCase
from greenroom.test import run_async

from . import views
from .models import Author, Book

UNKNOWN = ["library.middleware.unknown"]


class Data:
    @classmethod
    def setUpTestData(cls):
        cls.author = Author.objects.create(name="Ada")
        cls.book = Book.objects.create(title="Notes", author=cls.author)


class ClientTests(Data, TestCase):
    def test_the_transaction_is_the_tests(self):
        Author.objects.create(name="Bob")
        with self.assertNumQueries(
            2 + 2 + 2 + 1
        ):  # a savepoint, two rows, a lazy relation, a count
            answer = self.client.get("/add/Eve/")
        self.assertEqual(answer.json(), {"author": "Eve", "authors": 3})
        self.assertEqual(Author.objects.count(), 3)
        self.assertEqual(self.client.get("/plain/").content, b"3")
        self.assertEqual(self.client.get("/in_block/").content, b"True")

    def test_each_test_has_a_clean_slate(self):
        self.assertEqual(Author.objects.get(), self.author)
        self.client.get("/add/Eve/")

    def test_savepoints(self):
        self.assertEqual(self.client.get("/twice/").json(), ["Ada", "once"])

    def test_tasks_and_threads(self):
        self.assertEqual(self.client.get("/tasks/").json(), {"tasks": 3, "thread": 4})
        self.assertEqual(Author.objects.count(), 4)

    def test_a_task_goes_on_in_a_transaction(self):
        self.client.get("/leave/")
        self.assertTrue(Author.objects.filter(name="audited").exists())

    def test_errors(self):
        with self.assertRaisesMessage(ValueError, "a mistake"):
            self.client.get("/fail/")
        quiet = Client(raise_request_exception=False)
        with (
            self.assertLogs("django.request", "ERROR"),
            mock.patch.dict(connection.settings_dict, ATOMIC_REQUESTS=True),
        ):
            Author.objects.filter(name="lost").delete()
            self.assertEqual(quiet.get("/fail/").status_code, 500)
        self.assertFalse(Author.objects.filter(name="lost").exists())
        with self.assertLogs("django.request", "WARNING"):
            self.assertEqual(self.client.get("/missing/").status_code, 404)

    def test_on_commit(self):
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            Author.objects.all().delete()
            self.client.get("/later/")
        self.assertEqual(len(callbacks), 1)
        self.assertEqual(Author.objects.get().name, "committed")

    def test_templates(self):
        answer = self.client.get("/page/")
        self.assertTemplateUsed(answer, "books.html")
        self.assertContains(answer, "1 books")
        self.assertEqual(answer.context["count"], 1)
        self.assertEqual(answer.resolver_match.func, views.page)

    def test_log_in(self):
        User.objects.create_user("ada", password="secret")
        answer = self.client.get("/enter/", {"name": "ada"}, follow=True)
        self.assertRedirects(answer, "/who/")
        self.assertEqual(answer.content, b"ada 1")
        self.assertEqual(self.client.get("/who/").content, b"ada 2")
        other = Client()
        self.assertTrue(other.login(username="ada", password="secret"))
        self.assertEqual(other.get("/who/").content, b"ada 1")
        other.force_login(User.objects.create(username="eve"))
        self.assertEqual(other.get("/who/").content, b"eve 1")

    def test_streams(self):
        Author.objects.create(name="Bob")
        self.assertEqual(self.client.get("/stream/").getvalue(), b"Ada 2;Bob 2;")
        self.assertEqual(self.client.get("/plain_stream/").getvalue(), b"Ada;Bob;")
        answer = self.client.get("/endless/")
        parts = iter(answer.streaming_content)
        self.assertEqual(next(parts), b"2;")
        Author.objects.create(name="Cid")
        # A request while another's stream is open.
        self.assertEqual(self.client.get("/plain/").content, b"3")
        self.assertEqual(next(parts), b"3;")
        views.entered.clear()
        answer.close()
        self.assertEqual(views.entered, ["closed"])

    def test_a_stream_that_nobody_reads(self):
        ClientTests.unread = self.client.get("/endless/")
        self.assertEqual(self.client.get("/add/Eve/").json()["authors"], 2)

    def test_forms_and_csrf(self):
        files = {"name": "Ada", "file": BytesIO(b"notes")}
        self.assertEqual(self.client.post("/form/", files).content, b"Ada notes")
        with self.assertLogs("django.security.csrf", "WARNING"):
            strict = Client(enforce_csrf_checks=True)
            self.assertEqual(strict.post("/form/", {"name": "Ada"}).status_code, 403)

    def test_the_lifespan_lasts(self):
        first = Client().get("/lasting/").content
        self.assertEqual(self.client.get("/lasting/").content, first)

    def test_what_a_view_leaves_behind_is_seen(self):
        with translation.override("de"):
            self.assertEqual(self.client.get("/language/").content, b"en fr")

    @override_settings(MIDDLEWARE=UNKNOWN)
    def test_the_middlewares_are_those_of_the_settings(self):
        answer = self.client.get("/add/Eve/")
        self.assertEqual(answer["X-Unknown"], "seen")
        self.assertEqual(answer.json()["authors"], 2)

    def test_a_factory(self):
        request = RequestFactory().get("/")
        answer = greenroom.await_(views.add(request, "Eve"))
        self.assertEqual(answer.status_code, 200)
        self.assertEqual(Author.objects.count(), 2)

    @run_async
    async def test_decorated(self):
        answer = await views.add(AsyncRequestFactory().get("/"), "Eve")
        self.assertEqual(answer.status_code, 200)
        self.assertEqual(Author.objects.count(), 2)

    def test_a_thread_of_the_tests_own_has_another_connection(self):
        with ThreadPoolExecutor(1) as pool:
            mine = pool.submit(lambda: (connection.connection, connections.close_all())[0])
            self.assertIsNone(mine.result())


class AsyncTests(Data, TestCase):
    """Async tests, with the async client."""

    async def test_the_transaction_is_the_tests(self):
        await Author.objects.acreate(name="Bob")
        Author.objects.create(name="Cid")
        answer = await self.async_client.get("/add/Eve/")
        self.assertEqual(answer.json(), {"author": "Eve", "authors": 4})
        self.assertEqual(await Author.objects.acount(), 4)
        self.assertEqual((await self.async_client.get("/plain/")).content, b"4")

    async def test_each_test_has_a_clean_slate(self):
        self.assertEqual(Author.objects.get(), self.author)
        await self.async_client.get("/add/Eve/")

    async def test_savepoints_tasks_and_threads(self):
        self.assertEqual((await self.async_client.get("/twice/")).json(), ["Ada", "once"])
        answer = await self.async_client.get("/tasks/")
        self.assertEqual(answer.json(), {"tasks": 3, "thread": 5})

    async def test_two_at_once(self):
        async with asyncio.TaskGroup() as group:
            first = group.create_task(self.async_client.get("/meet/a/b/"))
            second = group.create_task(self.async_client.get("/meet/b/a/"))
        views.meetings.clear()
        self.assertEqual((first.result().content, second.result().content), (b"1", b"1"))

    async def test_errors(self):
        with self.assertRaisesMessage(ValueError, "a mistake"):
            await self.async_client.get("/fail/")
        with self.assertLogs("django.request", "WARNING"):
            self.assertEqual((await self.async_client.get("/missing/")).status_code, 404)

    async def test_log_in(self):
        user = await User.objects.acreate(username="ada")
        answer = await self.async_client.get("/enter/", {"name": "ada"}, follow=True)
        self.assertEqual(answer.content, b"ada 1")
        other = AsyncClient()
        await other.aforce_login(user)
        self.assertEqual((await other.get("/who/")).content, b"ada 1")

    async def test_streams(self):
        answer = await self.async_client.get("/stream/")
        self.assertEqual([part async for part in answer.streaming_content], [b"Ada 1;"])
        answer = await self.async_client.get("/plain_stream/")
        self.assertEqual(answer.getvalue(), b"Ada;")
        answer = await self.async_client.get("/endless/")
        views.entered.clear()
        async for part in answer.streaming_content:
            self.assertEqual(part, b"1;")
            break
        await answer.streaming_content.aclose()

    async def test_templates_forms_and_the_lifespan(self):
        self.assertTemplateUsed(await self.async_client.get("/page/"), "books.html")
        files = {"name": "Ada", "file": BytesIO(b"notes")}
        self.assertEqual((await self.async_client.post("/form/", files)).content, b"Ada notes")
        first = (await self.async_client.get("/lasting/")).content
        self.assertEqual((await self.async_client.get("/lasting/")).content, first)

    @override_settings(MIDDLEWARE=UNKNOWN)
    async def test_on_threads(self):
        answer = await self.async_client.get("/add/Eve/")
        self.assertEqual(answer["X-Unknown"], "seen")
        self.assertEqual(answer.json()["authors"], 2)
        self.assertEqual((await self.async_client.get("/tasks/")).json()["thread"], 5)

    async def test_a_view_by_itself(self):
        answer = await views.add(AsyncRequestFactory().get("/"), "Eve")
        self.assertEqual(answer.status_code, 200)

    async def test_the_plain_client(self):
        self.assertEqual(self.client.get("/add/Eve/").json()["authors"], 2)
        self.assertEqual(self.client.get("/stream/").getvalue(), b"Ada 2;Eve 2;")
        answer = self.client.get("/endless/")
        self.assertEqual(next(iter(answer.streaming_content)), b"2;")
        views.entered.clear()
        answer.close()
        self.assertEqual(views.entered, ["closed"])

    async def test_cancelled(self):
        with self.assertRaises(TimeoutError):
            async with asyncio.timeout(0.05):
                await self.async_client.get("/meet/c/nobody/")
        views.meetings.clear()

    async def test_what_is_left_ends_with_the_test(self):
        AsyncTests.left = asyncio.create_task(asyncio.sleep(60))
        AsyncTests.thread = threading.current_thread()
        await asyncio.sleep(0)

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        if hasattr(cls, "left"):
            assert cls.left.cancelled()
            assert not cls.thread.is_alive()


class CommittedTests(TransactionTestCase):
    def test_the_connection_is_the_tests(self):
        self.client.get("/later/")
        self.assertEqual(Author.objects.get().name, "committed")
        self.assertEqual(self.client.get("/in_block/").content, b"False")

    def test_atomic_requests(self):
        with mock.patch.dict(connection.settings_dict, ATOMIC_REQUESTS=True):
            self.assertEqual(self.client.get("/in_block/").content, b"True")
            with self.assertRaises(ValueError):
                self.client.get("/fail/")
        self.assertFalse(Author.objects.exists())

    async def test_async(self):
        await self.async_client.get("/add/Eve/")
        self.assertEqual(await Author.objects.acount(), 1)


class NoDatabaseTests(SimpleTestCase):
    def test_plain(self):
        self.assertEqual(self.client.get("/language/").status_code, 200)
        with self.assertRaisesMessage(AssertionError, "Database queries to 'default' are not"):
            self.client.get("/twice/")

    async def test_async(self):
        self.assertEqual((await self.async_client.get("/language/")).status_code, 200)


class ApiTests(APITestCase):
    def setUp(self):
        self.user = User.objects.create(username="ada")

    def test_client(self):
        self.assertEqual(self.client.post("/api/", {"name": "Eve"}).status_code, 403)
        self.client.force_authenticate(self.user)
        answer = self.client.post("/api/", {"name": "Eve"}, format="json")
        self.assertEqual((answer.status_code, answer.data["user"]), (201, "ada"))
        self.assertEqual(Author.objects.get().pk, answer.data["id"])
        self.assertEqual(self.client.get("/api/").data, {"user": "ada", "books": 0})
        by_session = APIClient()
        by_session.force_login(self.user)
        self.assertEqual(by_session.post("/api/", {"name": "Bob"}).status_code, 201)

    def test_factory(self):
        request = APIRequestFactory().post("/", {"name": "Eve"}, format="json")
        force_authenticate(request, self.user)
        self.assertEqual(views.Api.as_view()(request).status_code, 201)
        self.assertEqual(Author.objects.get().name, "Eve")

    def test_requests_client(self):
        if find_spec("requests") is None:
            self.skipTest("requests is not installed")
        from rest_framework.test import RequestsClient

        answer = RequestsClient().get("http://testserver/add/Eve/")
        self.assertEqual(answer.json(), {"author": "Eve", "authors": 1})
        self.assertEqual(Author.objects.get().name, "Eve")
        self.assertEqual(RequestsClient().get("http://testserver/in_block/").text, "True")


class Live:
    def get(self, path):
        with urllib.request.urlopen(self.live_server_url + path, timeout=30) as answer:
            return answer.read().decode()

    def test_it_serves(self):
        Author.objects.create(name="Ada")
        self.assertEqual(self.get("/plain/"), "1")
        self.assertIn('"authors": 2', self.get("/add/Eve/"))
        self.assertEqual(self.get("/stream/"), "Ada 2;Eve 2;")
        self.assertEqual(self.get("/in_block/"), "False")
        self.assertEqual(Author.objects.count(), 2)

    def test_many_at_once(self):
        with ThreadPoolExecutor(20) as pool:
            kinds = ("/sleep/", "/plain/", "/add/{}/", "/tasks/")
            answers = [pool.submit(self.get, kinds[n % 3].format(n)) for n in range(20)]
            for each in answers:
                each.result()
        self.assertEqual(Author.objects.count(), 6)

    def test_coroutines_wait_together(self):
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(self.get, path) for path in ("/meet/a/b/", "/meet/b/a/")]
            self.assertEqual([each.result() for each in both], ["0", "0"])
        views.meetings.clear()

    async def test_async(self):
        await Author.objects.acreate(name="Ada")
        async with httpx.AsyncClient(base_url=self.live_server_url) as client:
            answers = await asyncio.gather(*(client.get("/sleep/") for _ in range(5)))
        self.assertEqual({each.text for each in answers}, {"1"})

    @classmethod
    def setUpClass(cls):
        before = set(threading.enumerate())

        def ended():
            for _ in range(500):
                left = set(threading.enumerate()) - before
                left = {each for each in left if not each.name.startswith("greenroom-sqlite")}
                if not left:
                    return
                time.sleep(0.01)
            raise AssertionError(left)

        # After the end of the server, whose clean-up is added later.
        cls.addClassCleanup(ended)
        super().setUpClass()


class DjangosLiveTests(Live, LiveServerTestCase):
    def test_whose_it_is(self):
        self.assertEqual(self.get("/where/"), "greenroom-server")


class OurLiveTests(Live, OurLiveServerTestCase):
    @override_settings(MIDDLEWARE=[])
    def test_whose_it_is(self):
        self.assertEqual(self.get("/where/"), "greenroom-server")


class StaticLiveTests(Live, StaticLiveServerTestCase):
    def test_static_files(self):
        self.assertIn("function", self.get("/static/rest_framework/js/default.js"))


class OwnServerThread(LiveServerThread):
    def _create_server(self, connections_override=None):
        server = super()._create_server(connections_override)
        server.is_the_projects = True
        return server


class OwnServerTests(LiveServerTestCase):
    server_thread_class = OwnServerThread

    def test_it_serves(self):
        self.assertTrue(self.server_thread.httpd.is_the_projects)
        Author.objects.create(name="Ada")
        self.assertEqual(Live.get(self, "/plain/"), "1")


class GuardTests(TestCase):
    def test_a_loop_of_somebody_elses_refuses_queries_as_ever(self):
        async def query():
            return Author.objects.count()

        with self.assertRaises(SynchronousOnlyOperation):
            asyncio.run(query())
