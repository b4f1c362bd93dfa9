"""Ray Serve of a cluster: start it, put the applications on it, and take them off."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from stages.contract import StageError
from stages.serve.api_keys import ApiKeys
from stages.serve.app import APP, front_application, painters_application, painters_name
from stages.serve.config import ServeConfig
from stages.serve.served_model import ServedModel

_POLL_SECONDS = 0.2
_PROGRESS_SECONDS = 10  # until it is said that it takes long; twice as long until the next time
_QUIET = {"log_level": "ERROR", "enable_access_log": False}


def serve_runs() -> bool:
    """Whether Serve runs on the cluster."""
    return bool(serve.status().proxies)


def start_serve(settings: ServeConfig) -> None:
    """Start Serve unless it runs on the cluster already.

    Raises:
        StageError: Another server runs on the cluster.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # Serve has set it when it was imported
    applications = serve.status().applications
    for name in (APP, painters_name(APP)):
        if name in applications:
            raise StageError(
                f"The cluster has an application {name} already; stop the server that it belongs to, or delete the "
                f"application with ray.serve.delete({name!r})."
            )
    # No limit of Serve's: the front has its own, and answers with its own errors.
    address = {"host": settings.host, "port": settings.port, "request_timeout_s": None}
    serve.start(http_options=address, logging_config=_QUIET)


def check_gpus(settings: ServeConfig, available: int | None = None) -> None:
    """Check that there are the GPUs that the painters ask for.

    Args:
        settings: Of the endpoint.
        available: GPUs of the Ray that will be started; None: those of the cluster.

    Raises:
        StageError: It has not.
    """
    if not settings.use_gpu:
        return
    found, where = (int(_gpus()), "the Ray cluster") if available is None else (available, "this machine")
    if found < settings.replicas:
        remedy = f"--set serve.replicas={found}" if found else "--set serve.use_gpu=false, to paint on the CPU"
        raise StageError(
            f"serve.use_gpu asks for a GPU for each of serve.replicas={settings.replicas} and {where} has {found}: "
            f"serve with {remedy}."
        )


def deploy_painters(
    model: ServedModel, settings: ServeConfig, uploads: Path | None, say: Callable[[str], None], app: str = APP
) -> None:
    """Let painters load a model; return when they have replaced those with another model, if there are any.

    Args:
        model: The model to serve.
        settings: Of the endpoint.
        uploads: The folder of uploaded concepts; None: there are none.
        say: Shows the user how it goes on.
        app: The name of the application with the front.

    Raises:
        StageError: It cannot be loaded; the others go on.
    """
    painters = painters_application(model, settings, _gpus(), uploads)
    _deploy(painters, painters_name(app), None, f"Loading {model.title}", say)


def deploy_front(
    name: str, settings: ServeConfig, keys: ApiKeys, uploads: Path | None, say: Callable[[str], None]
) -> None:
    """Let the front answer requests for the model `name`, if they have one of the keys.

    Raises:
        StageError: It cannot.
    """
    _deploy(front_application(name, settings, keys, uploads), APP, "/", "Starting the server", say)


def drain(settings: ServeConfig) -> None:
    """Refuse new requests, and wait for the others; they end within `settings.timeout_seconds`."""
    with suppress(RayServeException, RayError, TimeoutError):  # there is no front yet, or it is gone
        serve.get_app_handle(APP).drain.remote().result(timeout_s=settings.timeout_seconds)


def remove(*, with_serve: bool) -> None:
    """Take the applications off the cluster.

    Args:
        with_serve: Stop Serve as well, unless it has other applications.
    """
    for name in (APP, painters_name(APP)):
        serve.delete(name)
    if with_serve and not serve.status().applications:
        serve.shutdown()


def delete_painters_of_deleted(app: str) -> None:
    """Delete the painters of an application that is being deleted; leave those of one that is deployed again."""
    with suppress(RayServeException, RayError):  # Serve itself is stopping
        application = serve.status().applications.get(app)
        if application is None or application.status == ApplicationStatus.DELETING:
            serve.delete(painters_name(app))


def _deploy(
    application: serve.Application, name: str, route: str | None, what: str, say: Callable[[str], None]
) -> None:
    target = serve.RunTarget(target=application, name=name, route_prefix=route, logging_config=_QUIET)
    try:
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_running(name, what, say)
    except (RayServeException, RayError) as error:
        raise StageError(f"{what} failed: {_last_line(str(error))}") from error


def _wait_until_running(name: str, what: str, say: Callable[[str], None]) -> None:
    begun, next_word = time.monotonic(), _PROGRESS_SECONDS
    while (status := _status(name)).status != ApplicationStatus.RUNNING:
        reason = "; ".join(found.message for found in status.deployments.values() if found.message)
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            raise StageError(f"{what} failed: {_last_line(reason or status.message)}")
        seconds = time.monotonic() - begun
        if seconds > next_word:
            next_word *= 2
            say(f"{what}: {seconds:.0f} s{_waiting(reason)}")
        time.sleep(_POLL_SECONDS)


def _gpus() -> float:
    return float(ray.cluster_resources().get("GPU", 0))


def _status(name: str) -> Any:
    applications = serve.status().applications
    if name not in applications:
        raise StageError(f"The application {name} was deleted while it was being deployed.")
    return applications[name]


def _waiting(reason: str) -> str:
    """Why Serve has not started a replica yet, in its own words."""
    return f" ({reason.split('. ')[0]})" if "to be scheduled" in reason else ""


def _last_line(text: str) -> str:
    """Of a traceback: the error, without its type."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1]) if lines else "no reason is known"
