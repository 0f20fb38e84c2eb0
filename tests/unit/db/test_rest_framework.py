"""Django REST framework over the database, in coroutine views and in both placements."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.backends.db import SessionStore
from django.db import connections
from django.test import override_settings
from django.urls import resolve
from rest_framework.authtoken.models import Token

from driver import Answer, Site
from orm import Database
from project import urls_rest_orm
from project.shop.models import Counter, Customer, Order

MIDDLEWARE = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "project.middleware.Place",
)
# All else is known that is around these views.
LOOP_SAFE = ["project.middleware.Place"]
TOKEN = "x" * 32


@pytest.fixture
def user(database: Database) -> Iterator[User]:
    """Who may add counters, but delete none."""
    user = User.objects.create_user("me", password="secret")
    # After a TRUNCATE there are none.
    kind = ContentType.objects.get_for_model(Counter)
    for name in ("add_counter", "change_counter"):
        permission, _ = Permission.objects.get_or_create(content_type=kind, codename=name)
        user.user_permissions.add(permission)
    yield user
    ContentType.objects.clear_cache()


@pytest.fixture
def site(database: Database, placement: str) -> Iterator[Site]:
    urls_rest_orm.places.clear()
    with _site(placement) as site:
        yield site
        connections.close_all()


def _site(placement: str, **settings: Any) -> Site:
    greenroom = {"LOOP_SAFE": LOOP_SAFE, **settings.pop("GREENROOM", {})}
    return Site(
        placement,
        middleware=MIDDLEWARE,
        ROOT_URLCONF="project.urls_rest_orm",
        GREENROOM=greenroom,
        **settings,
    )


def send(site: Site, path: str, method: str = "GET", data: Any = None, **extra: Any) -> Answer:
    body = b"" if data is None else json.dumps(data).encode()
    return site.get(path, method, body, CONTENT_TYPE="application/json", **extra)


def cookies(user: User) -> dict[str, str]:
    """Of a session of this user."""
    session = SessionStore()
    session["_auth_user_id"] = str(user.pk)
    session["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
    session["_auth_user_hash"] = user.get_session_auth_hash()
    session.save()
    return {"HTTP_COOKIE": f"sessionid={session.session_key}; csrftoken={TOKEN}"}


CSRF = {"HTTP_X_CSRFTOKEN": TOKEN}


def test_session_authentication(site: Site, user: User) -> None:
    assert send(site, "/session/").code == 403
    mine = cookies(user)
    assert json.loads(send(site, "/session/", **mine).body) == "me"
    answer = send(site, "/session/", "POST", **mine)
    assert (answer.code, "CSRF" in answer.text) == (403, True)
    assert send(site, "/session/", "POST", **mine, **CSRF).code == 200
    assert urls_rest_orm.places == [site.placement] * 2


def test_token_authentication(site: Site, user: User) -> None:
    key = Token.objects.create(user=user).key
    assert send(site, "/token/", HTTP_AUTHORIZATION="Token wrong").code == 401
    assert json.loads(send(site, "/token/", HTTP_AUTHORIZATION=f"Token {key}").body) == "me"


def test_basic_authentication(site: Site, user: User) -> None:
    for password, code in (("wrong", 401), ("secret", 200)):
        given = base64.b64encode(f"me:{password}".encode()).decode()
        assert send(site, "/basic/", HTTP_AUTHORIZATION=f"Basic {given}").code == code


def test_model_permissions(site: Site, user: User) -> None:
    mine = {**cookies(user), **CSRF}
    assert send(site, "/counters/", "POST", {"name": "a"}).code == 403
    answer = send(site, "/counters/", "POST", {"name": "a"}, **mine)
    assert (answer.code, json.loads(answer.body)["value"]) == (201, 0)
    # The unique validator queries.
    answer = send(site, "/counters/", "POST", {"name": "a"}, **mine)
    assert (answer.code, set(json.loads(answer.body))) == (400, {"name"})
    counter = Counter.objects.get()
    path = f"/counters/{counter.pk}/"
    assert send(site, path, "PUT", {"name": "b", "value": 3}, **mine).code == 200
    assert send(site, path, "DELETE", **mine).code == 403
    assert list(Counter.objects.values_list("name", "value")) == [("b", 3)]
    # Only the coroutines of those who were let in.
    assert urls_rest_orm.places == [site.placement] * 2


def test_cursor_pagination(site: Site) -> None:
    Counter.objects.bulk_create(Counter(name=name) for name in ("a", "b", "c", "d", "e", "xx"))
    found, path = [], "/counters/"
    while path:
        page = json.loads(send(site, path).body)
        found.append([each["name"] for each in page["results"]])
        path = (page["next"] or "").removeprefix("http://testserver")
    assert found == [["a", "b"], ["c", "d"], ["e", "xx"]]
    assert len(json.loads(send(site, "/counters/?search=x").body)["results"]) == 1
    assert urls_rest_orm.places == [site.placement] * 4


def test_filters_and_relations(site: Site) -> None:
    """With django-filter, whose form looks the related object up."""
    one, two = (Customer.objects.create(name=name) for name in ("one", "two"))
    for customer in (one, two):
        Order.objects.bulk_create(Order(customer=customer, note=f"note {n}") for n in range(3))

    def notes(query: str) -> list[Any]:
        answer = send(site, f"/orders/?{query}")
        assert answer.code == 200, answer.text
        return [(each["name"], each["note"]) for each in json.loads(answer.body)]

    assert notes(f"customer={two.pk}&note__startswith=note&ordering=-note") == [
        ("two", "note 2"),
        ("two", "note 1"),
        ("two", "note 0"),
    ]
    assert notes("note=note+1") == [("one", "note 1"), ("two", "note 1")]
    assert send(site, "/orders/?customer=77").code == 400
    assert urls_rest_orm.places == [site.placement] * 3


def test_what_an_error_response_rolls_back(database: Database, placement: str) -> None:
    """DRF marks the transaction of ATOMIC_REQUESTS, on the connections it finds."""
    database.change(ATOMIC_REQUESTS=True)
    customer = Customer.objects.create(name="one")
    with _site(placement) as site:
        assert send(site, "/add/", "POST").code == 400
        order = {"customer": customer.pk, "note": "not this"}
        assert send(site, "/orders/", "POST", order).code == 400
        assert send(site, "/orders/", "POST", {**order, "note": "this"}).code == 201
        connections.close_all()
    assert list(Customer.objects.values_list("name", flat=True)) == ["one"]
    assert list(Order.objects.values_list("note", flat=True)) == ["this"]


def test_many_at_a_time_with_few_connections(database: Database) -> None:
    key = Token.objects.create(user=User.objects.create_user("me")).key
    Customer.objects.create(name="one")
    Counter.objects.bulk_create(Counter(name=str(number)) for number in range(5))

    async def main(site: Site) -> list[int]:
        asked = [site.ask("/counters/") for _ in range(20)]
        asked += [site.ask("/token/", HTTP_AUTHORIZATION=f"Token {key}") for _ in range(20)]
        return [answer.code for answer in await asyncio.gather(*asked)]

    with _site("loop", GREENROOM={"DB_MAX_CONNECTIONS": 2}) as site:
        assert site.run(main) == [200] * 40


# simplejwt.


def test_json_web_tokens(site: Site, user: User) -> None:
    from rest_framework_simplejwt.tokens import AccessToken, RefreshToken

    token = AccessToken.for_user(user)
    given = {"HTTP_AUTHORIZATION": f"Bearer {token}"}
    assert json.loads(send(site, "/jwt/", **given).body) == "me"
    assert json.loads(send(site, "/jwt-stateless/", **given).body) == str(user.pk)
    assert urls_rest_orm.places == [site.placement] * 2
    assert send(site, "/jwt/", HTTP_AUTHORIZATION="Bearer wrong").code == 401
    refresh = {"HTTP_AUTHORIZATION": f"Bearer {RefreshToken.for_user(user)}"}
    assert send(site, "/jwt/", **refresh).code == 401
    User.objects.all().delete()
    answer = send(site, "/jwt/", **given)
    assert (answer.code, json.loads(answer.body)["code"]) == (401, "user_not_found")
    assert send(site, "/jwt-stateless/", **given).code == 200


# Placement.


def reason(path: str, method: str = "GET", **settings: Any) -> str:
    with _site("auto", **settings) as site:
        placement = site.app.handler.judge.place(resolve(path).func, method)
        assert placement.coroutine
        return str(placement.reason)


@pytest.mark.parametrize("vendor", ["sqlite"])
def test_all_of_these_are_on_the_loop(database: Database) -> None:
    for name in ("session", "token", "basic", "jwt", "jwt-stateless"):
        assert reason(f"/{name}/") == "", name
    for path, method in (("/counters/", "POST"), ("/counters/1/", "DELETE"), ("/orders/", "GET")):
        assert reason(path, method) == "", path


class OwnToken:
    token_type = "own"


def test_a_json_web_token_that_is_not_known() -> None:
    own = {"AUTH_TOKEN_CLASSES": (f"{__name__}.OwnToken",)}
    for given, why in (
        ({"JWK_URL": "https://localhost/keys"}, "fetches its keys from JWK_URL"),
        ({"TOKEN_USER_CLASS": "django.http.HttpRequest"}, "calls django.http.request.HttpRequest"),
        (own, f"calls {__name__}.OwnToken"),
    ):
        with override_settings(SIMPLE_JWT=given):
            assert why in reason("/jwt/")
    assert reason("/jwt/") == ""
