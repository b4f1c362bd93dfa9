"""The command `serve`: the registry's champion, the shipped model, or a given adapter, behind HTTP, on Ray Serve.

    curl -F subject=@mug.png -F word=mug -F prompt="a photo of a mug in the snow" localhost:8000/generate -o painted.png

Listens on the loopback interface unless `serve.host` says otherwise, which needs API keys. The routes are those of
`stages.serve.web` and, for OpenAI's clients, of `stages.serve.openai_api`.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

from stages.config import Config
from stages.contract import StageError
from stages.ray_tools.cluster import connected_cluster, local_cluster
from stages.ray_tools.gpus import gpus_of_machine
from stages.serve import proxy, uploaded_concepts
from stages.serve.api_keys import VARIABLE, check_exposure, parse_api_keys
from stages.serve.champion import ChampionFollower
from stages.serve.config import ServeConfig
from stages.serve.registry import Registry
from stages.serve.served_model import ServedModel

_START_SECONDS = 60
_REPOSITORY = Path(__file__).resolve().parents[2]
_EXAMPLE = _REPOSITORY / "docs" / "subject.png"
_EXAMPLE_WORD = "mug"


def run_server(
    config: Config,
    registry: Registry,
    *,
    shipped: bool = False,
    given: ServedModel | None = None,
    cluster: str | None = None,
) -> None:
    """Serve the champion, whichever version that is, until SIGINT or SIGTERM; then finish what is running.

    Args:
        config: Sections `register` (the name) and `serve`; for the shipped model also `inference`.
        registry: Where the champion is.
        shipped: Serve the model that ships with the code as long as there is no champion.
        given: Serve this model, whatever the registry has.
        cluster: The address of a running Ray cluster; None: a local Ray, which ends with the server.

    Raises:
        StageError: The port is taken, there is no champion, its files are damaged, other machines would need no API
            key, or the cluster has not what it takes; no request was answered.
    """
    settings, uploads = config.serve, (registry.run_folder / uploaded_concepts.FOLDER).absolute()
    keys = parse_api_keys(os.environ.pop(VARIABLE, None))  # Ray's processes inherit the environment
    check_exposure(settings, keys)
    os.environ[proxy.VARIABLE] = proxy.FUNCTION  # before Ray's processes start
    if cluster is None:
        check_address(settings)
        if settings.use_gpu:
            _check_gpus_of_machine(settings)

    def deploy(model: ServedModel) -> None:
        from stages.serve.ray_serve import deploy_painters

        deploy_painters(model, settings, uploads, _say)

    follower = ChampionFollower(
        registry=registry,
        shipped=_shipped_model(config) if shipped else None,
        deploy=deploy,
        say=_say,
        given=given,
    )
    model = follower.choose()
    with _ray(cluster), _stopped_by_signals(), _serve(settings, cluster):
        from stages.serve.ray_serve import deploy_front

        deploy_front(registry.name, settings, keys, uploads, _say)
        _say(f"Loading {model}.")
        deploy(model)
        address = _wait_until_ready(settings)
        _say(f"Serving {model} at {address}/ (stop with Ctrl-C). Try:")
        with_key = " -H 'Authorization: Bearer ...'" if keys else ""
        _say(f"  {example(address, registry.run_folder)}{with_key}")
        while True:
            time.sleep(settings.registry_check_seconds)
            follower.check()


def _check_gpus_of_machine(settings: ServeConfig) -> None:
    """Before a large model is verified and Ray started."""
    from stages.serve.ray_serve import check_gpus

    check_gpus(settings, gpus_of_machine())


def _ray(cluster: str | None) -> AbstractContextManager[str]:
    return local_cluster(dashboard=False) if cluster is None else connected_cluster(cluster, str(_REPOSITORY))


@contextmanager
def _serve(settings: ServeConfig, cluster: str | None) -> Iterator[None]:
    """Start Serve for the block; at its end, finish what is running, and leave nothing of ours on a cluster."""
    from stages.serve.ray_serve import check_gpus, drain, remove, serve_runs, start_serve

    check_gpus(settings)
    running = serve_runs()
    if running:
        _check_listening(settings)
    elif cluster is not None:
        check_address(settings)
    start_serve(settings)
    try:
        yield
    except KeyboardInterrupt:
        _say(f"Stopping: requests that are being answered are finished, within {settings.timeout_seconds:g} s.")
        drain(settings)
        raise
    finally:
        if cluster is not None:  # a local Ray ends, with all that runs on it
            remove(with_serve=not running)


def _shipped_model(config: Config) -> Callable[[], ServedModel]:
    from stages.serve.shipped import shipped_model_of  # with torch

    return shipped_model_of(config)


def _say(message: str) -> None:
    print(message, flush=True)


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


def _check_listening(settings: ServeConfig) -> None:
    """Check that Serve, which runs on the cluster already, listens on the address: that cannot be changed."""
    address = _address(settings)
    try:
        _get(f"{address}/-/healthz")
    except urllib.error.HTTPError:
        return  # some proxy answers
    except (urllib.error.URLError, OSError) as error:
        raise StageError(
            f"Ray Serve runs on the cluster already and does not listen on {address}; set serve.host and serve.port to "
            "where it listens."
        ) from error


def _wait_until_ready(settings: ServeConfig) -> str:
    """Wait until a painter is ready; return the address."""
    address, deadline = _address(settings), time.monotonic() + _START_SECONDS
    while True:
        try:
            _get(f"{address}/ready")
            return address
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise StageError(f"{address}/ready does not answer: {error}.") from error
            time.sleep(0.2)


def _address(settings: ServeConfig) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    return f"http://{host}:{settings.port}"


def _get(url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy is between us and this machine
    direct.open(url, timeout=10).close()


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """End the block at SIGINT (Ctrl-C), SIGTERM and SIGHUP, so that what it has started is stopped."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as after nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        print("Stopped.", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
