"""Middlewares of every style around both kinds of view, in both placements."""

from __future__ import annotations

import pytest

from driver import Site
from project import middleware

STYLES = ("function", "Mixin", "Coroutine", "either")


@pytest.fixture(autouse=True)
def _clear() -> None:
    middleware.log.clear()


def use(site: Site, *names: str) -> None:
    site.use(*(f"project.middleware.{name}" for name in names))


@pytest.mark.parametrize("path", ["/hello/", "/plain/"])
def test_order_of_all_styles(site: Site, path: str) -> None:
    use(site, *STYLES)
    assert site.get(path).code == 200
    assert middleware.log == [
        "function in",
        "mixin in",
        "coroutine in",
        "either in",
        "mixin view",
        "coroutine view",
        "either out 200",
        "coroutine out 200",
        "mixin out 200",
        "function out 200",
    ]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("inner", STYLES)
def test_each_style_inside_of_each(site: Site, style: str, inner: str) -> None:
    use(site, style, inner)
    assert site.get("/hello/").text == "Hello world!"
    outer_in, *_, outer_out = middleware.log
    assert outer_in == f"{style.lower()} in"
    assert outer_out == f"{style.lower()} out 200"


def test_hooks_for_exceptions_and_templates(site: Site) -> None:
    use(site, "Mixin", "Coroutine")
    assert site.get("/raise/404/").code == 404
    # In the reverse order of the middlewares, as in Django.
    assert middleware.log[4:6] == ["coroutine exception Http404", "mixin exception Http404"]
    middleware.log.clear()
    assert site.get("/template/").text == "hook rendered on thread"
    assert middleware.log[4:6] == ["coroutine template", "mixin template"]


@pytest.mark.parametrize("by", ["request", "view"])
def test_answers_in_the_place_of_the_view(site: Site, by: str) -> None:
    use(site, "Answers")
    assert site.get(f"/hello/?by={by}").text == f"{by} hook"


@pytest.mark.parametrize("path", ["/raise/error/", "/template-error/"])
def test_process_exception_answers(site: Site, path: str) -> None:
    use(site, "Answers")
    assert site.get(f"{path}?by=exception").text == "exception hook"


@pytest.mark.parametrize("outer", STYLES)
def test_an_exception_is_a_response_for_the_next_layer(site: Site, outer: str) -> None:
    use(site, outer, "refuses")
    assert site.get("/hello/").code == 403
    assert middleware.log[-1] == f"{outer.lower()} out 403"


def test_not_used(site: Site) -> None:
    use(site, "not_used", "function")
    assert site.get("/hello/").code == 200
    assert [path for path, _ in site.app.handler.judge._middleware] == [
        "project.middleware.function"
    ]


def test_a_factory_that_returns_none_is_named(site: Site) -> None:
    use(site, "factory_of_none")
    with pytest.raises(Exception, match=r"Middleware factory project\.middleware\.factory_of_none"):
        site.get("/hello/")


def test_a_middleware_that_returns_none_is_named(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    use(site, "function", "returns_none")
    assert site.get("/hello/").code == 500
    assert middleware.log[-1] == "function out 500"
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "The middleware project.middleware.returns_none didn't return" in str(record.exc_info)


@pytest.mark.parametrize(("path", "text"), [("/hello/", "plain"), ("/plain/", "Hello world!")])
def test_a_middleware_changes_the_view(site: Site, path: str, text: str) -> None:
    """The placement was a hint: the other kind of view is answered too."""
    use(site, "other_urlconf")
    assert site.get(path).text == text


def test_django_s_own_seven(site: Site) -> None:
    site.use(
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    )
    answer = site.get("/hello/")
    assert answer.text == "Hello world!"
    assert answer.header("X-Frame-Options") == "DENY"
    assert answer.header("Content-Length") == "12"
