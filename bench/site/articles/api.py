"""django-bolt's own kind of view (it looks for `api` in each app)."""

from django_bolt import BoltAPI
from django_bolt.responses import PlainText

api = BoltAPI(django_middleware=True, trailing_slash="append")


@api.get("/coroutine/hello/")
async def hello() -> PlainText:
    return PlainText("Hello world!")
