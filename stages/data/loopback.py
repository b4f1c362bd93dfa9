"""A web server for the pictures of the micro world.

Each task that downloads them starts one for itself, at a free port, and only while it needs it. It listens only on the
loopback interface, so no other machine can reach it, and none has to: a cluster's nodes need not reach the driver,
which may be a laptop behind a firewall. A picture comes straight from the folder, also from one in an object store.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from upath import UPath

from stages.storage import StorePath

HOST = "127.0.0.1"


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class _StoreHandler(_QuietHandler):
    """Serves objects of a store as files of a disk are served."""

    def __init__(self, *arguments: Any, root: UPath) -> None:
        self.root = root
        super().__init__(*arguments)

    def send_head(self) -> io.BytesIO | None:
        """See `SimpleHTTPRequestHandler.send_head`."""
        name = unquote(urlsplit(self.path).path).lstrip("/")
        try:
            # One request; with more than one at a time s3fs would ask for the size first.
            content = self.root.fs.cat_file((self.root / name).path, max_concurrency=1)
        except FileNotFoundError:
            self.send_error(HTTPStatus.NOT_FOUND, "File not found")
            return None
        except Exception as error:  # such as credentials that have expired
            assert isinstance(self.server, _Server)
            self.server.errors.append(error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return None
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-type", self.guess_type(name))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # downloaders open many connections at once

    def __init__(self, handler: Any) -> None:
        super().__init__((HOST, 0), handler)
        self.errors: list[Exception] = []


@contextmanager
def serve_folder(root: StorePath) -> Iterator[str]:
    """Serve the files below `root` at a free port while the block runs; yields the base URL.

    Raises:
        Exception: At the end of the block, when the store could not be read: its rows are no dead links.
    """
    handler = (
        partial(_QuietHandler, directory=str(root)) if isinstance(root, Path) else partial(_StoreHandler, root=root)
    )
    server = _Server(handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    if server.errors:
        raise server.errors[0]
