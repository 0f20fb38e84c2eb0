"""What all gunicorns have in common.

Where asked, also a count of each worker's requests, and of the blocks of memory that its
Python has in use.
"""

import os
import sys
import threading
import time

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


if blocks := os.environ.get("BENCH_BLOCKS"):

    def post_worker_init(worker):
        threading.Thread(target=note_blocks, daemon=True).start()

    def note_blocks():
        with open(blocks, "a", buffering=1) as file:
            while True:
                file.write(f"{time.monotonic()} {sys.getallocatedblocks()}\n")
                time.sleep(5)
