"""The command `serve`: the registry's champion, or the shipped model, behind HTTP, on Ray Serve.

    curl -F subject=@mug.png -F word=mug -F prompt="a photo of a mug in the snow" localhost:8000/generate -o painted.png

Listens on the loopback interface unless `serve.host` says otherwise, which needs API keys. The routes are those of
`stages.serve.web` and, for OpenAI's clients, of `stages.serve.openai_api`.
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
from stages.ray_tools.cluster import local_cluster
from stages.serve import proxy
from stages.serve.api_keys import VARIABLE, check_exposure, parse_api_keys
from stages.serve.config import ServeConfig
from stages.serve.registry import find_champion

_APP = "realword"
_START_SECONDS = 60
_EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "subject.png"
_EXAMPLE_WORD = "mug"


def run_server(config: Config, tracking_uri: str | None, run_folder: Path, *, shipped: bool = False) -> None:
    """Serve the champion of `register.model_name`, or the model that ships with the code, until SIGINT or SIGTERM.

    Args:
        config: Sections `register` (the name) and `serve`; for the shipped model also `inference`.
        tracking_uri: Where the registry is; None when there is none yet.
        run_folder: Of the run: for errors, and for the picture of the example.
        shipped: Serve the shipped model.

    Raises:
        StageError: The port is taken, there is no champion, its files are damaged, or other machines would need no
            API key; nothing was started.
    """
    settings = config.serve
    keys = parse_api_keys(os.environ.pop(VARIABLE, None))  # Ray's processes inherit the environment
    check_exposure(settings, keys)
    os.environ[proxy.VARIABLE] = proxy.FUNCTION  # before Ray's processes start
    check_address(settings)
    if shipped:
        from stages.serve.shipped import shipped_model

        model = shipped_model(config)
        reason = f"There is no registered model in {run_folder} yet"
        print(f"{reason}: the base and adapter that ship with Realword answer.", flush=True)
    else:
        model = find_champion(config.register.model_name, tracking_uri, run_folder, config.profile)
    with local_cluster(dashboard=False), _stopped_by_signals():
        from ray import serve

        from stages.serve.app import build_app

        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # after the import, which sets it
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        serve.start(
            http_options={"host": settings.host, "port": settings.port, "request_timeout_s": None}, logging_config=quiet
        )
        try:
            serve.run(build_app(model, settings, keys), name=_APP, logging_config=quiet)
            address = _wait_until_ready(settings)
            print(f"Serving {model.title} at {address}/ (stop with Ctrl-C). Try:", flush=True)
            with_key = " -H 'Authorization: Bearer ...'" if keys else ""
            print(f"  {example(address, run_folder)}{with_key}", flush=True)
            signal.pause()
        finally:
            serve.delete(_APP)  # pictures that are being painted are finished; Ray itself ends after that


def check_address(settings: ServeConfig) -> None:
    """Check that this machine can listen on the address.

    Raises:
        StageError: It cannot.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StageError(
            f"serve cannot listen on {settings.host} port {settings.port}: {reason}; "
            "choose another port with --set serve.port=..."
        ) from error


def example(address: str, run_folder: Path) -> str:
    """A curl command for a request, with a picture of the run's microworld when there is one."""
    here = Path.cwd()
    subject = str(_EXAMPLE.relative_to(here) if _EXAMPLE.is_relative_to(here) else _EXAMPLE)
    word = _EXAMPLE_WORD
    listings = list(run_folder.glob("stages/microworld/*/subjects/subjects.json"))
    if listings:
        latest = max(listings, key=lambda path: path.stat().st_mtime)
        entry = json.loads(latest.read_text())[0]
        subject, word = str(latest.parent / entry["pictures"][0]), entry["word"]
    prompt = shlex.quote(f"prompt=a photo of a {word} in the snow")
    return f"curl -F {shlex.quote(f'subject=@{subject}')} -F word={word} -F {prompt} {address}/generate -o painted.png"


def _wait_until_ready(settings: ServeConfig) -> str:
    """Wait until a painter is ready; return the address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    address, deadline = f"http://{host}:{settings.port}", time.monotonic() + _START_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy is between us and this machine
    while True:
        try:
            with direct.open(f"{address}/ready", timeout=10):
                return address
        except (urllib.error.URLError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise StageError(f"{address}/ready does not answer: {error}.") from error
            time.sleep(0.2)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """End the block at SIGINT (Ctrl-C) and SIGTERM, so that what it has started is stopped."""

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
