"""Django with no server: its own handler, called again and again in this process.

    python limit.py PATH SECONDS

What the handler does for a request is all done: the request object, signals, middlewares, the
view, the answer's fields, and the close of the answer. Prints calls per second.
"""

import io
import os
import sys
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

from django.core.wsgi import get_wsgi_application

# What a server hands over for wrk's request.
ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_PORT": "50000",
    "HTTP_HOST": "127.0.0.1:8000",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
}


def main() -> None:
    path, seconds = sys.argv[1], float(sys.argv[2])
    application = get_wsgi_application()

    def start_response(status, headers):
        assert status == "200 OK", status

    def call():
        environ = ENVIRON | {"PATH_INFO": path, "RAW_URI": path, "wsgi.input": io.BytesIO()}
        answer = application(environ, start_response)
        body = b"".join(answer)
        answer.close()
        return body

    for _ in range(200):
        body = call()
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for _ in range(10):
            call()
        calls += 10
    print(f"{calls / took:.1f} {len(body)}")


if __name__ == "__main__":
    main()
