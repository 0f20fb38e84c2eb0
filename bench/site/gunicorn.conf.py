"""What all gunicorns have in common; and, where asked, a count of each worker's requests."""

import os

import gunicorn.config

loglevel = "error"
timeout = 120
if "control_socket_disable" in gunicorn.config.make_settings():
    control_socket_disable = True

if folder := os.environ.get("BENCH_COUNTS"):
    counted = 0

    def post_request(worker, req, environ, resp):
        global counted
        counted += 1

    def worker_exit(server, worker):
        with open(os.path.join(folder, str(worker.pid)), "w") as file:
            file.write(str(counted))
