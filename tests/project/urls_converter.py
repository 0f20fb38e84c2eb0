"""A path converter of the project's own."""

from django.http import HttpResponse
from django.urls import path, register_converter

from greenroom.handler import ON_LOOP


class Word:
    regex = "[a-z]+"

    def to_python(self, value):
        return value

    def to_url(self, value):
        return value


register_converter(Word, "word")


async def show(request, word):
    return HttpResponse(f"{word} {ON_LOOP in request.__dict__}")


urlpatterns = [path("word/<word:word>/", show)]
