import os

worker_class = "greenroom.Worker"
workers = 1  # one process, so that the numbers on the pages all come from the same one
threads = 4  # for the plain views: the synchronous page, the admin, static files
keepalive = 30  # more than the pages' own client keeps one: it never meets one that just closed
graceful_timeout = 5  # more than any page takes; the clocks end as soon as they are told
bind = f"127.0.0.1:{os.environ.get('PORT', '8000')}"


def when_ready(server):
    # Runs once the socket listens and before the worker starts. The pages call this same server
    # as their "upstream", so the worker is told the address that was really bound (PORT=0 too).
    host, port = server.LISTENERS[0].sock.getsockname()[:2]
    address = f"http://{host}:{port}"
    os.environ.setdefault("MONTAGE_UPSTREAM", address)
    print(f"Montage is at {address}/", flush=True)
