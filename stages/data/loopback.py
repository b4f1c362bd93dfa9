"""A web server for the pictures of the micro world.

Each task that downloads them starts one for itself, at a free port, and only while it needs it. It listens only on the
loopback interface, so no other machine can reach it, and none has to: a cluster's nodes need not reach the driver,
which may be a laptop behind a firewall.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # downloaders open many connections at once


@contextmanager
def serve_folder(root: Path) -> Iterator[str]:
    """Serve the files below `root` at a free port while the block runs; yields the base URL."""
    server = _Server((HOST, 0), partial(_QuietHandler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
