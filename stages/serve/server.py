"""The command `serve`: the registry's champion behind HTTP, on Ray Serve.

    curl -F subject=@mug.png -F word=mug -F prompt="a photo of a mug in the snow" localhost:8000/generate -o painted.png

Listens on the loopback interface unless `serve.host` says otherwise; it has no authentication. Answers: 200 a PNG;
413, 415, 422 the request is wrong; 503 with Retry-After when too many wait; 504 when painting takes too long.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from stages.config import Config
from stages.contract import StageError
from stages.serve.config import ServeConfig
from stages.serve.registry import champion

_START_SECONDS = 60


def run_server(config: Config, tracking_uri: str, run_folder: Path) -> None:
    """Serve the champion of `register.model_name` until SIGINT or SIGTERM.

    Args:
        config: Sections `register` (the name) and `serve`.
        tracking_uri: Where the registry is.
        run_folder: To say which command makes a model, and to find a picture for the example.

    Raises:
        StageError: The port is taken, there is no champion, or its files are damaged; nothing was started.
    """
    settings = config.serve
    check_address(settings)
    version = champion(config.register.model_name, tracking_uri, run_folder, config.profile)
    model = f"{config.register.model_name} version {version}"
    with _local_ray(), _stopped_by_signals():
        from ray import serve

        from stages.serve.app import build_app

        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # after the import, which sets it
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        serve.start(
            http_options={"host": settings.host, "port": settings.port, "request_timeout_s": None}, logging_config=quiet
        )
        try:
            uri = f"models:/{config.register.model_name}/{version}"
            serve.run(build_app(uri, model, tracking_uri, settings), name="realword", logging_config=quiet)
            address = _wait_until_it_answers(settings)
            print(f"Serving {model} at {address}/ (stop with Ctrl-C). Try:", flush=True)
            print(f"  {example(address, run_folder)}", flush=True)
            signal.pause()
        finally:
            serve.shutdown()


def check_address(settings: ServeConfig) -> None:
    """Find out whether the address can be listened on.

    Raises:
        StageError: It cannot.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StageError(
            f"serve cannot listen on {settings.host} port {settings.port}: {reason}; "
            "choose another port with --set serve.port=..."
        ) from error


def example(address: str, run_folder: Path) -> str:
    """A curl command that works as it stands when the run has a microworld."""
    subject, word = "picture.png", "toy"
    listings = list(run_folder.glob("stages/microworld/*/subjects/subjects.json"))
    if listings:
        latest = max(listings, key=lambda path: path.stat().st_mtime)
        entry = json.loads(latest.read_text())[0]
        subject, word = str(latest.parent / entry["pictures"][0]), entry["word"]
    prompt = shlex.quote(f"prompt=a photo of a {word} in the snow")
    return f"curl -F {shlex.quote(f'subject=@{subject}')} -F word={word} -F {prompt} {address}/generate -o painted.png"


@contextmanager
def _local_ray() -> Iterator[None]:
    """A Ray of our own, on the loopback interface, that ends with the block."""
    import ray

    ray.init(
        address="local",
        num_cpus=max(8, 4 * (os.cpu_count() or 1)),  # logical: Serve's own actors count as well
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield
    finally:
        ray.shutdown()


def _wait_until_it_answers(settings: ServeConfig) -> str:
    """The address, once a painter has said through it that it is ready."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    address, deadline = f"http://{host}:{settings.port}", time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=10):
                return address
        except (urllib.error.URLError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise StageError(f"{address}/health does not answer: {error}.") from error
            time.sleep(0.2)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """End the block in good order at SIGINT (Ctrl-C) and SIGTERM."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        print("Stopped.", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
