"""A web server for the pictures of the micro world.

It runs only while it is needed, and listens only on the loopback interface: no other machine can reach it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stages.contract import StageError

HOST = "127.0.0.1"


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # downloaders open many connections at once


@contextmanager
def serve_folder(root: Path, port: int) -> Iterator[str]:
    """Serve the files below `root` while the block runs; yields the base URL. Port 0 picks a free port.

    Raises:
        StageError: The port is taken or may not be used.
    """
    try:
        server = _Server((HOST, port), partial(_QuietHandler, directory=str(root)))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise StageError(
            f"the micro world's pictures cannot be served on {HOST}:{port} ({error.strerror}); "
            f"stop the program that uses the port, or choose another port with --set microworld.port={port + 1}."
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
