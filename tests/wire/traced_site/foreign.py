"""A middleware that nobody has read, which holds all views on threads.

And a receiver that takes its time, while other requests are under way.
"""

import time

from django.core.signals import request_finished

from greenroom import loop_safe


# It holds nothing on threads that isn't there.
@loop_safe
def slow(**kwargs):
    time.sleep(0.05)


request_finished.connect(slow)


def middleware(get_response):
    def inner(request):
        return get_response(request)

    return inner
