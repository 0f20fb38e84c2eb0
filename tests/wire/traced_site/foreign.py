"""A middleware that nobody has read, which holds all views on threads."""


def middleware(get_response):
    def inner(request):
        return get_response(request)

    return inner
