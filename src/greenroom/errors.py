"""What can go wrong, and whose fault it is.

::

    Exception
    ├── GreenroomError
    │   ├── PeerError              the client's: carries the HTTP status of the answer
    │   ├── ApplicationError       the application broke the contract of coroutine WSGI
    │   ├── BridgeError            `await_` was called where it can't wait
    │   ├── ViewError              a view is of a kind that needs a mark
    │   └── Overloaded             no thread came free in time: 503 with Retry-After
    └── django ImproperlyConfigured   the settings', raised by `greenroom.conf`

A message about misuse ends with its mend.
"""

from __future__ import annotations


class GreenroomError(Exception):
    """The root of this package's own errors."""


class PeerError(GreenroomError):
    """The client sent what must be refused.

    `status` is the HTTP status of the answer, after which the connection is
    closed; the message is for the log and never holds bytes of the request's
    body or of its credentials.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ApplicationError(GreenroomError):
    """The application broke PEP 3333 or its coroutine extension."""


class BridgeError(GreenroomError, RuntimeError):
    """`await_` was called where nothing can wait for it."""


class ViewError(GreenroomError, RuntimeError):
    """A view made something that can't be answered; the message names the mend."""


class Overloaded(GreenroomError):
    """No thread came free within the time limit.

    `retry_after` is in seconds, for the header of that name.
    """

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
