"""The admin, beneath the middlewares of `startproject`: strangers, log-in, log-out, forms."""

import re

import pytest

BEHIND_LOG_IN = [
    "/admin/",
    "/admin/montage/",
    "/admin/montage/board/",
    "/admin/montage/board/add/",
    "/admin/montage/board/1/change/",
    "/admin/montage/board/1/delete/",
    "/admin/auth/user/",
    "/admin/auth/user/1/password/",
    "/admin/password_change/",
    "/admin/jsi18n/",
    "/admin/autocomplete/",
    "/admin/no-such-page/",
]


@pytest.fixture
def staff(client):
    assert _log_in(client, "demo").status_code == 302
    return client


@pytest.mark.parametrize("path", BEHIND_LOG_IN)
def test_strangers_are_sent_to_the_log_in(client, path):
    response = client.get(path)
    assert response.status_code == 302
    assert response.headers["location"] == f"/admin/login/?next={path}"


def test_strangers_cannot_post(client):
    client.get("/admin/login/")
    response = client.post("/admin/montage/board/1/delete/", data=_with_token(client, post="yes"))
    assert response.status_code == 302
    assert response.headers["location"].startswith("/admin/login/")
    assert client.get("/montage/?board=everything").status_code == 200


def test_log_in_and_log_out(client):
    response = _log_in(client, "demo")
    assert response.status_code == 302
    assert response.headers["location"] == "/admin/"
    cookie = next(c for c in response.headers.get_list("set-cookie") if "sessionid=" in c)
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie

    boards = client.get("/admin/montage/board/")
    assert boards.status_code == 200
    assert "On the way" in boards.text
    assert "no-store" in boards.headers["cache-control"]

    assert client.post("/admin/logout/").status_code == 403  # without the CSRF token
    assert client.get("/admin/").status_code == 200
    assert client.post("/admin/logout/", data=_with_token(client)).status_code == 200
    assert "sessionid" not in client.cookies
    assert client.get("/admin/montage/board/").status_code == 302


def test_wrong_password(client):
    response = _log_in(client, "guess")
    assert response.status_code == 200
    assert "Please enter the correct username and password" in response.text
    assert client.get("/admin/").status_code == 302


def test_log_in_without_the_csrf_token(client):
    response = client.post("/admin/login/", data={"username": "demo", "password": "demo"})
    assert response.status_code == 403
    assert client.get("/admin/").status_code == 302


def test_forged_session(client):
    client.cookies.set("sessionid", "eyJfYXV0aF91c2VyX2lkIjoiMSJ9:1abcde:forged")
    assert client.get("/admin/").status_code == 302


def test_a_title_given_in_the_admin_is_on_the_board(staff):
    path = "/admin/montage/board/2/change/"
    form = _fields(staff.get(path).text)
    assert form["slug"] == "on-the-way"
    _saved(staff, path, form | {"tiles-0-title": "Above <us>"})
    try:
        assert "Above &lt;us&gt;" in staff.get("/montage/?board=on-the-way").text
    finally:
        _saved(staff, path, form)


def test_another_default_board(staff):
    assert staff.get("/montage/").text.count('<li class="tile') == 12
    _make_default(staff, 2)
    try:
        assert "“On the way” is what the montage shows now." in staff.get("/admin/").text
        assert staff.get("/montage/").text.count('<li class="tile') == 5
    finally:
        _make_default(staff, 1)


def _log_in(client, password):
    client.get("/admin/login/")
    form = _with_token(client, username="demo", password=password, next="/admin/")
    return client.post("/admin/login/", data=form)


def _with_token(client, **form):
    return form | {"csrfmiddlewaretoken": client.cookies["csrftoken"]}


def _fields(page):
    """The inputs and chosen options of a change form, but for its buttons."""
    form = page[page.index('<form method="post" enctype') :] if "enctype" in page else page
    fields = {}
    for tag in re.findall(r"<input[^>]*>", form):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if attributes.get("type") in ("text", "number", "hidden") and "name" in attributes:
            fields[attributes["name"]] = attributes.get("value", "")
    for name, options in re.findall(r'<select name="([^"]*)".*?>(.*?)</select>', form, re.DOTALL):
        if chosen := re.search(r'<option value="([^"]*)" selected', options):
            fields[name] = chosen[1]
    return fields


def _saved(client, path, form):
    response = client.post(path, data=form | _with_token(client))
    assert response.status_code == 302, response.text


def _make_default(client, pk):
    form = _with_token(client, action="make_default", _selected_action=str(pk))
    assert client.post("/admin/montage/board/", data=form).status_code == 302
