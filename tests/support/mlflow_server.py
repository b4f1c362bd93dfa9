"""An MLflow server as it runs elsewhere: in a process of its own, with a database and a store for files."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 120


@contextmanager
def mlflow_server(
    folder: Path, database: str, artifacts: str, variables: Mapping[str, str] | None = None, *options: str
) -> Iterator[str]:
    """The address of a server that ends after the block.

    Args:
        folder: For its log.
        database: The URI of its database.
        artifacts: Where it keeps files.
        variables: Of its environment.
        options: Of the command `mlflow server`.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *options),
        *("--backend-store-uri", database, "--artifacts-destination", artifacts),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(variables or {})}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
        )
        try:
            _wait_until_healthy(process, f"http://127.0.0.1:{port}/health", folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"MLflow's server did not start: {log.read_text()[-2000:]}")


class Relay(socketserver.ThreadingTCPServer):
    """Passes connections on to a server on this machine until it is cut; `url` takes the place of the server's."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.port = int(server.rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def cut(self) -> None:
        """End all connections and take no more."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # ended already
                connection.shutdown(socket.SHUT_RDWR)


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Relay)
        with socket.create_connection(("127.0.0.1", self.server.port)) as upstream:
            self.server.connections += [self.request, upstream]
            threading.Thread(target=_copy, args=(upstream, self.request), daemon=True).start()
            _copy(self.request, upstream)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):  # cut
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
