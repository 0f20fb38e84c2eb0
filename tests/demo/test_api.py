"""The box office's API, over the wire, on SQLite and on PostgreSQL."""

import asyncio
import itertools
import json
import socket
import struct
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
JPEG = b"\xff\xd8\xff\xe0" + bytes(100)

# Users with a token each, who know no password.
MAKE_PEOPLE = """
import json
from django.contrib.auth.models import User
from rest_framework_simplejwt.tokens import AccessToken
users = User.objects.bulk_create(User(username=f"person{n}", password="!") for n in range(200))
print("tokens", json.dumps({each.username: str(AccessToken.for_user(each)) for each in users}))
"""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request, serve):
    if request.param == "sqlite":
        with serve() as site:
            yield site
        return
    database = request.getfixturevalue("pg").create("montage")
    settings = {"PGHOST": database["HOST"], "PGUSER": database["USER"]}
    with serve(MONTAGE_POSTGRESQL=database["NAME"], **settings) as site:
        yield site


@pytest.fixture(scope="module")
def people(site):
    """Headers of one user after the other: the throttle counts for each."""
    printed = site.manage("shell", "-v0", "-c", MAKE_PEOPLE).stdout
    tokens = json.loads(printed.split("tokens ", 1)[1])
    return iter([{"Authorization": f"Bearer {token}"} for token in tokens.values()])


@pytest.fixture
def anyone(people):
    return next(people)


@pytest.fixture
def other(people):
    return next(people)


@pytest.fixture
def api(site):
    with site.client(headers={"Accept": "application/json"}) as client:
        client.base_url = f"{site.url}/api/"
        yield client


numbers = itertools.count(1)


def evening(days=1, **fields):
    starts = (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="seconds")
    return {"starts_at": starts.replace("+00:00", "Z"), "price": "10.00", "seats": 10} | fields


def new_show(api, who, *performances, **fields):
    show = {"title": f"Show {next(numbers)}", "performances": performances} | fields
    response = api.post("shows/", json=show, headers=who)
    assert response.status_code == 201, response.text
    return response.json()


def new_evening(api, who, **fields):
    return new_show(api, who, evening(**fields))["performances"][0]["id"]


def book(api, who, performance, seats=1, params=None, **fields):
    return api.post(
        f"performances/{performance}/book/",
        json={"seats": seats} | fields,
        headers=who,
        params=params,
    )


# Who asks.


def test_log_in_with_a_token_and_refresh_it(api):
    wrong = api.post("token/", json={"username": "guest", "password": "guess"})
    assert wrong.status_code == 401
    pair = api.post("token/", json={"username": "guest", "password": "guest"}).json()
    who = {"Authorization": f"Bearer {pair['access']}"}
    assert api.get("bookings/", headers=who).json()["results"] == []

    fresh = api.post("token/refresh/", json={"refresh": pair["refresh"]}).json()
    who = {"Authorization": f"Bearer {fresh['access']}"}
    assert api.get("bookings/", headers=who).status_code == 200
    # One is not taken for the other.
    assert api.post("token/refresh/", json={"refresh": pair["access"]}).status_code == 401
    who = {"Authorization": f"Bearer {pair['refresh']}"}
    assert api.get("bookings/", headers=who).status_code == 401


def test_log_in_with_a_session_and_its_csrf_token(api):
    api.get("auth/login/")
    form = {"username": "guest", "password": "guest", "next": "/api/"}
    form["csrfmiddlewaretoken"] = api.cookies["csrftoken"]
    assert api.post("auth/login/", data=form).status_code == 302
    assert api.get("bookings/").status_code == 200
    show = {"title": f"By session {next(numbers)}", "performances": []}
    refused = api.post("shows/", json=show)
    assert (refused.status_code, refused.json()) == (
        403,
        {"detail": "CSRF Failed: CSRF token missing."},
    )
    token = {"X-CSRFToken": api.cookies["csrftoken"]}
    assert api.post("shows/", json=show, headers=token).status_code == 201
    api.post("auth/logout/", data={"csrfmiddlewaretoken": api.cookies["csrftoken"]})
    assert api.get("bookings/").status_code == 401


@pytest.mark.parametrize("header", ["Bearer nonsense", "Bearer", "Bearer a b", "Bearer \xff"])
def test_bad_tokens(api, header):
    response = api.get("shows/", headers={"Authorization": header.encode("latin-1")})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="api"'


def test_strangers_may_look_and_nothing_else(api, anyone):
    show = new_show(api, anyone, evening())
    performance = show["performances"][0]["id"]
    assert api.get("shows/").status_code == 200
    assert api.get(f"shows/{show['id']}/").json() == show
    assert api.get(f"performances/{performance}/").status_code == 200
    for response in (
        api.post("shows/", json={"title": "x", "performances": []}),
        api.patch(f"shows/{show['id']}/", json={"title": "x"}),
        api.delete(f"shows/{show['id']}/"),
        api.put(f"shows/{show['id']}/poster/", files={"poster": PNG}),
        api.delete(f"shows/{show['id']}/poster/"),
        book(api, None, performance),
        api.get("bookings/"),
    ):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Bearer realm="api"'
    assert api.get(f"shows/{show['id']}/").json() == show


def test_only_who_manages_a_show_changes_it(api, anyone, other):
    """The permission is a coroutine; some handlers are coroutines and some are plain."""
    show = new_show(api, anyone, evening())
    path = f"shows/{show['id']}/"
    for response in (
        api.put(path, json={"title": "x", "performances": []}, headers=other),
        api.patch(path, json={"title": "x"}, headers=other),
        api.delete(path, headers=other),
        api.put(f"{path}poster/", files={"poster": PNG}, headers=other),
        api.delete(f"{path}poster/", headers=other),
    ):
        assert response.status_code == 403
        assert response.json() == {"detail": "Only those who manage the show may do this."}
    assert api.get(path, headers=other).json() == show
    assert api.patch(path, json={"about": "Mine."}, headers=anyone).json()["about"] == "Mine."
    assert api.delete(path, headers=anyone).status_code == 204
    assert api.get(path).status_code == 404


def test_bookings_of_others_are_not_there(api, anyone, other):
    booking = book(api, anyone, new_evening(api, anyone)).json()
    path = f"bookings/{booking['reference']}/"
    assert api.get(path, headers=other).status_code == 404
    assert api.patch(path, json={"note": "x"}, headers=other).status_code == 404
    assert api.delete(path, headers=other).status_code == 404
    assert api.get("bookings/", headers=other).json()["results"] == []
    assert api.get(path, headers=anyone).json() == booking


# Shows and their performances.


def test_nested_create_and_update(api, anyone):
    show = new_show(api, anyone, evening(1), evening(2), about="A play.")
    assert [each["sold"] for each in show["performances"]] == [0, 0]
    assert show["poster"] is None
    first, second = show["performances"]

    # One is changed, one is new, and the one that isn't given goes.
    changed = [first | {"price": "12.50"}, evening(3, seats=7)]
    response = api.patch(f"shows/{show['id']}/", json={"performances": changed}, headers=anyone)
    assert response.status_code == 200
    performances = response.json()["performances"]
    assert performances[0] == first | {"price": "12.50"}
    assert performances[1]["seats"] == 7
    assert second["id"] not in [each["id"] for each in performances]
    assert api.get(f"shows/{show['id']}/").json() == response.json()
    assert api.get(f"performances/{second['id']}/").status_code == 404

    replaced = {"title": f"Show {next(numbers)}", "performances": []}
    response = api.put(f"shows/{show['id']}/", json=replaced, headers=anyone)
    assert response.json()["performances"] == []
    assert response.json()["title"] == replaced["title"]


def test_validation_errors(api, anyone):
    title = f"Show {next(numbers)}"
    bad = [evening(price="-1"), {"seats": "many"}]
    response = api.post("shows/", json={"title": "", "performances": bad}, headers=anyone)
    assert response.status_code == 400
    errors = response.json()
    assert errors["title"] == ["This field may not be blank."]
    by_place = errors["performances"]
    first, second = by_place.values() if isinstance(by_place, dict) else by_place
    assert first == {"price": ["Ensure this value is greater than or equal to 0."]}
    assert set(second) == {"starts_at", "price", "seats"}

    show = new_show(api, anyone, evening(), title=title)
    performance = show["performances"][0]
    elsewhere = new_evening(api, anyone)
    for performances, message in (
        ([performance, performance], "A performance is given twice."),
        ([evening(id=elsewhere)], f"The show has no performance {elsewhere}."),
        ([performance, {"seats": 3}], "A new performance needs price and starts_at."),
    ):
        response = api.patch(
            f"shows/{show['id']}/",
            json={"title": "Not this", "performances": performances},
            headers=anyone,
        )
        assert response.status_code == 400
        assert response.json() == {"performances": [message]}
    assert api.get(f"shows/{show['id']}/").json() == show

    response = api.post("shows/", json={"title": title, "performances": []}, headers=anyone)
    assert response.json() == {"title": ["show with this title already exists."]}
    response = api.post(
        "shows/", content=b"{", headers=anyone | {"Content-Type": "application/json"}
    )
    assert response.status_code == 400
    assert "JSON parse error" in response.json()["detail"]
    response = api.post("shows/", data={"title": "a form"}, headers=anyone)
    assert response.status_code == 415


def test_what_is_booked_can_not_be_taken_away(api, anyone):
    show = new_show(api, anyone, evening(seats=5))
    (performance,) = show["performances"]
    assert book(api, anyone, performance["id"], 4).status_code == 201
    path = f"shows/{show['id']}/"
    for performances, message in (
        ([performance | {"seats": 3}], "4 seats are sold already."),
        ([evening(2)], f"Performance {performance['id']} has bookings: it can't be removed."),
    ):
        response = api.patch(path, json={"performances": performances}, headers=anyone)
        assert (response.status_code, response.json()) == (400, {"performances": [message]})
    response = api.delete(path, headers=anyone)
    assert response.status_code == 409
    assert response.json() == {"detail": "Somebody has booked: the show must go on."}
    # All or nothing: the new performance was made first.
    assert api.get(path).json()["performances"] == [performance | {"sold": 4}]


def test_posters(site, api, anyone):
    show = new_show(api, anyone)
    path = f"shows/{show['id']}/poster/"
    seen = []
    for content, kind in ((PNG, "image/png"), (JPEG, "image/jpeg")):
        # What the client says of the file is not taken.
        files = {"poster": ("../evil.html", content, "text/html")}
        response = api.put(path, files=files, headers=anyone)
        assert response.status_code == 200, response.text
        seen.append(response.json()["poster"])
        assert seen[-1].startswith(f"{site.url}/media/posters/poster")
        stored = api.get(seen[-1])
        assert (stored.content, stored.headers["content-type"]) == (content, kind)
        assert stored.headers["x-content-type-options"] == "nosniff"
    assert api.get(seen[0]).status_code == 404
    assert api.get(f"shows/{show['id']}/").json()["poster"] == seen[1]

    for content, message in (
        (PNG + bytes(256 * 1024), "At most 256 KiB, please."),
        (b"<html>", "A poster is a PNG or a JPEG."),
        (b"", "The submitted file is empty."),
    ):
        response = api.put(path, files={"poster": ("a.png", content, "image/png")}, headers=anyone)
        assert (response.status_code, response.json()) == (400, {"poster": [message]})
    # Three megabytes are spooled to a file and not kept in memory.
    response = api.put(path, files={"poster": PNG + bytes(3 << 20)}, headers=anyone)
    assert response.json() == {"poster": ["At most 256 KiB, please."]}
    assert api.put(path, json={"poster": "x"}, headers=anyone).status_code == 415
    assert api.get(seen[1]).status_code == 200

    assert api.delete(path, headers=anyone).status_code == 204
    assert api.get(seen[1]).status_code == 404
    assert api.get(f"shows/{show['id']}/").json()["poster"] is None


# Lists.


@pytest.fixture(scope="module")
def season(site, people):
    """A show of 25 evenings, of rising prices; three are on the same day."""
    with site.client() as api:
        api.base_url = f"{site.url}/api/"
        days = [*range(1, 10), 10, 10, *range(10, 24)]
        return new_show(
            api,
            next(people),
            *(evening(d, price=f"{n}.00", seats=n) for n, d in enumerate(days, 1)),
            title=f"The long season {next(numbers)}",
        )


@pytest.mark.parametrize(
    ("query", "prices"),
    [
        ({"price_max": 3, "ordering": "price"}, [1, 2, 3]),
        ({"price_max": 3, "ordering": "-price"}, [3, 2, 1]),
        ({"free": 24, "ordering": "price"}, [24, 25]),
        ({"after": "%(24)s"}, [24, 25]),
        ({"before": "%(4)s"}, [1, 2, 3]),
        ({"after": "%(10)s", "before": "%(13)s", "ordering": "-price"}, [12, 11, 10]),
        ({"search": "no such title"}, []),
        ({"search": "long season", "price_max": "1.00"}, [1]),
    ],
)
def test_filters_and_ordering(api, season, query, prices):
    days = {str(n): each["starts_at"] for n, each in enumerate(season["performances"], 1)}
    query = {name: value % days if "%" in str(value) else value for name, value in query.items()}
    response = api.get("performances/", params={"show": season["id"]} | query)
    assert response.status_code == 200, response.text
    found = response.json()["results"]
    assert [float(each["price"]) for each in found] == prices
    assert {each["show"]["id"] for each in found} <= {season["id"]}


@pytest.mark.parametrize(
    "query",
    [{"show": "x"}, {"show": 10**20}, {"after": "soon"}, {"price_max": "NaN"}, {"free": "x"}],
    ids=str,
)
def test_filters_that_make_no_sense(api, query):
    response = api.get("performances/", params=query)
    assert response.status_code == 400
    assert list(response.json()) == list(query)


@pytest.mark.parametrize("ordering", ["starts_at", "-starts_at", "price", "-price"])
def test_cursor_pages_in_both_directions(api, season, ordering):
    query = {"show": season["id"], "page_size": 4, "ordering": ordering}
    pages = [api.get("performances/", params=query).json()]
    while pages[-1]["next"]:
        pages.append(api.get(pages[-1]["next"]).json())
    assert [len(page["results"]) for page in pages] == [4, 4, 4, 4, 4, 4, 1]
    there = [each["id"] for page in pages for each in page["results"]]
    assert len(set(there)) == 25

    back = [pages[-1]]
    while back[-1]["previous"]:
        back.append(api.get(back[-1]["previous"]).json())
    assert [each["id"] for page in reversed(back) for each in page["results"]] == there
    assert api.get("performances/?cursor=nonsense").status_code == 404


# Booking.


def test_booking(site, api, anyone):
    performance = new_evening(api, anyone, price="10.00", seats=5)
    response = book(api, anyone, performance, 2, currency="GBP", note="Aisle, please")
    assert response.status_code == 201, response.text
    booking = response.json()
    assert booking["performance"]["free"] == 3
    assert (booking["total"], booking["currency"]) == ("17.22", "GBP")
    assert (booking["doors"], booking["note"]) == ("18:25", "Aisle, please")
    path = f"bookings/{booking['reference']}/"
    assert api.get(path, headers=anyone).json() == booking
    _eventually(lambda: f"ticket {booking['reference']} for person" in site.log.read_text())

    # Nothing but the note can be changed.
    changed = api.patch(path, json={"note": "", "seats": 1, "total": "0.00"}, headers=anyone)
    assert changed.json() == booking | {"note": ""}

    dearer = book(api, anyone, performance, 3).json()
    listed = api.get("bookings/", params={"ordering": "-seats"}, headers=anyone).json()["results"]
    assert [each["seats"] for each in listed] == [3, 2]
    listed = api.get("bookings/", params={"currency": "EUR"}, headers=anyone).json()["results"]
    assert [each["reference"] for each in listed] == [dearer["reference"]]

    full = book(api, anyone, performance)
    assert (full.status_code, full.json()) == (409, {"detail": "There are 0 seats left."})
    assert api.delete(path, headers=anyone).status_code == 204
    assert api.delete(path, headers=anyone).status_code == 404
    assert api.get(f"performances/{performance}/").json()["free"] == 2


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seats": 0}, "seats"),
        ({"seats": 11}, "seats"),
        ({"currency": "XYZ"}, "currency"),
        ({"note": "x" * 201}, "note"),
        ({"note": "\0"}, "note"),
    ],
)
def test_bookings_that_make_no_sense(api, anyone, fields, named):
    response = book(api, anyone, new_evening(api, anyone), **fields)
    assert response.status_code == 400
    assert list(response.json()) == [named]


def test_booking_what_is_not_there(api, anyone):
    assert book(api, anyone, 10**9).status_code == 404
    assert book(api, anyone, 10**30).status_code == 404
    response = book(api, anyone, "x")
    assert (response.status_code, response.json()) == (404, {"detail": "Not found."})


@pytest.mark.parametrize("failing", [["currency"], ["stage"], ["currency", "stage"]], ids=str)
def test_a_service_that_fails_books_nothing(site, api, anyone, failing):
    performance = new_evening(api, anyone)
    response = book(api, anyone, performance, params={"fail": failing}, note="nothing")
    assert response.status_code == 502
    assert response.json() == {"detail": "A service that is needed for this has no answer."}
    assert api.get(f"performances/{performance}/").json()["free"] == 10
    assert api.get("bookings/", headers=anyone).json()["results"] == []
    # The connection that is lent next has no transaction open, and no callback left.
    assert book(api, anyone, performance).status_code == 201
    ticket = f": 1 × {_title(api, performance)},"
    _eventually(lambda: ticket in site.log.read_text())
    assert site.log.read_text().count(ticket) == 1


def test_who_leaves_meanwhile_books_nothing(site, api, people):
    # A busy machine may let the client leave too late.
    for who in (next(people) for _ in range(4)):
        performance = new_evening(api, who)
        leave_while_booking(site, performance, who)
        time.sleep(0.5)
        if api.get(f"performances/{performance}/").json()["free"] == 10:
            break
    assert api.get(f"performances/{performance}/").json()["free"] == 10
    assert api.get("bookings/", headers=who).json()["results"] == []
    assert book(api, who, performance, 10).status_code == 201


def leave_while_booking(site, performance, who):
    request = (
        f"POST /api/performances/{performance}/book/ HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: {who['Authorization']}\r\n"
        'Content-Type: application/json\r\nContent-Length: 12\r\n\r\n{"seats": 3}'
    )
    url = httpx.URL(site.url)
    with socket.create_connection((url.host, url.port)) as client:
        client.sendall(request.encode())
        time.sleep(0.1)  # the services take 0.3 seconds
        # A reset: after a mere end of its half the client might still be reading.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_fifty_at_once_never_oversell(site, api, anyone, people):
    performance = new_evening(api, anyone, seats=12)
    crowd = [next(people) for _ in range(50)]

    async def rush():
        limits = httpx.Limits(max_connections=None)
        async with site.async_client(limits=limits) as client:
            path = f"/api/performances/{performance}/book/"
            return await asyncio.gather(
                *(client.post(path, json={"seats": 2}, headers=who) for who in crowd)
            )

    answers = asyncio.run(rush())
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [201] * 6 + [409] * 44
    booked = [answer.json()["performance"]["free"] for answer in answers if answer.is_success]
    assert sorted(booked) == [0, 2, 4, 6, 8, 10]
    assert api.get(f"performances/{performance}/").json()["free"] == 0


def test_a_booking_deleted_many_times_at_once_gives_its_seats_back_once(site, api, anyone):
    performance = new_evening(api, anyone, seats=10)
    assert book(api, anyone, performance, 5).status_code == 201
    reference = book(api, anyone, performance, 2).json()["reference"]

    async def delete():
        async with site.async_client() as client:
            path = f"/api/bookings/{reference}/"
            return await asyncio.gather(*(client.delete(path, headers=anyone) for _ in range(8)))

    assert {answer.status_code for answer in asyncio.run(delete())} <= {204, 404}
    assert api.get(f"performances/{performance}/").json()["free"] == 5


def test_who_books_too_often_waits(api, anyone, other):
    performance = new_evening(api, anyone)
    # The throttle counts what is asked, not what is granted.
    answers = [book(api, anyone, performance, 0) for _ in range(21)]
    assert [answer.status_code for answer in answers] == [400] * 20 + [429]
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert "Request was throttled." in answers[-1].json()["detail"]
    assert api.get("performances/", headers=anyone).status_code == 200
    assert book(api, other, performance).status_code == 201


# What it says of itself.


def test_options(api, anyone):
    response = api.options("shows/", headers=anyone)
    assert response.status_code == 200
    assert response.headers["allow"] == "GET, POST, HEAD, OPTIONS"
    fields = response.json()["actions"]["POST"]
    assert fields["performances"]["child"]["children"]["price"]["required"]
    assert "actions" not in api.options("shows/").json()
    # The permission that is a coroutine is asked here too.
    show = new_show(api, anyone)
    assert "PUT" in api.options(f"shows/{show['id']}/", headers=anyone).json()["actions"]


def test_options_ask_the_object_permission(api, anyone, other):
    show = new_show(api, anyone)
    assert "actions" not in api.options(f"shows/{show['id']}/", headers=other).json()


@pytest.mark.parametrize("path", ["", "shows/", "shows/1/", "performances/?page_size=2"])
def test_browsable_api(api, anyone, path):
    response = api.get(path, headers=anyone | {"Accept": "text/html"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>" in response.text
    assert response.text.rstrip().endswith("</html>")


def test_forms_of_the_browsable_api_are_for_those_who_may(api, anyone, other):
    show = new_show(api, anyone)
    html = {"Accept": "text/html"}
    mine = api.get(f"shows/{show['id']}/", headers=anyone | html).text
    theirs = api.get(f"shows/{show['id']}/", headers=other | html).text
    assert 'data-method="DELETE"' in mine
    assert 'data-method="PUT"' in mine
    assert "data-method=" not in theirs.replace('data-method="OPTIONS"', "")


def test_errors_are_json(api):
    for path in ("nowhere/", "shows/x/", "shows/1/x/", "bookings/1/"):
        response = api.get(path)
        assert response.status_code == 404
        assert response.json() == {"detail": "Not found."}
    response = api.put("shows/")
    assert response.status_code == 401


def test_coroutines_are_on_the_loop(site):
    views = json.loads(site.manage("greenroom", "--json").stdout)
    assert views["held_on_threads_by"] == []
    placements = {
        view["route"]: (view["placement"], view["reason"])
        for view in views["views"]
        if view["coroutine"] and view["route"].startswith("api/")
    }
    plain = "DELETE: its DELETE is a plain function"
    assert placements == {
        "api/shows/": ("loop", ""),
        "api/shows/<int:pk>/": ("thread", plain),
        "api/shows/<int:pk>/poster/": ("thread", plain),
        "api/performances/": ("loop", ""),
        "api/performances/<int:pk>/": ("loop", ""),
        "api/performances/<int:pk>/book/": ("loop", ""),
        "api/bookings/": ("loop", ""),
        "api/bookings/<uuid:pk>/": ("loop", ""),
    }


def test_admin(site):
    with site.client() as client:
        client.get("/admin/login/")
        form = {"username": "demo", "password": "demo", "next": "/admin/"}
        form["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
        assert client.post("/admin/login/", data=form).status_code == 302
        for path in ("show/", "show/add/", "show/1/change/", "booking/"):
            assert client.get(f"/admin/boxoffice/{path}").status_code == 200
        assert client.get("/admin/boxoffice/booking/add/").status_code == 403


def _title(api, performance):
    return api.get(f"performances/{performance}/").json()["show"]["title"]


def _eventually(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
