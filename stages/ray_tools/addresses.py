"""Which Ray cluster a command uses: `--ray-address`, RAY_ADDRESS, the cluster of its Ray job, or a local one."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from stages.contract import StageError

#: Ray sets it for a job's entrypoint: JSON with the job's runtime environment and metadata.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"

#: An address that answers at all does so in this time.
CONNECT_SECONDS = 10

_OPTION, _VARIABLE = "--ray-address", "RAY_ADDRESS"


class AddressError(StageError):
    """The address of a cluster is of no form that this pipeline takes."""


def job_runtime_environment() -> dict[str, Any] | None:
    """The runtime environment of the Ray job that runs this process; None when no job does."""
    text = os.environ.get(JOB_VARIABLE)
    return None if text is None else dict(json.loads(text).get("runtime_env") or {})


def is_local(address: str | None) -> bool:
    """Whether `--ray-address` means a Ray that the command starts itself.

    Without the option, a Ray job uses the cluster that runs it.
    """
    return address == "local" or (address is None and job_runtime_environment() is None)


def dashboard_of(address: str | None) -> str | None:
    """The URL of the dashboard that `--ray-address` means, to which jobs are submitted; None for another form."""
    if address == "auto":
        address = os.environ.get(_VARIABLE)
    return address.rstrip("/") if address and address.lower().startswith(("http://", "https://")) else None


def find_cluster(address: str | None) -> str | None:
    """The host:port of the running cluster that `--ray-address` means; None for a local one, of our own.

    `auto` means the cluster of RAY_ADDRESS, else one that runs on this machine.

    Raises:
        AddressError: The address has another form.
        StageError: No cluster answers there, or this machine is no node of it. Ray itself would try for minutes.
    """
    if is_local(address):
        return None
    if address not in (None, "auto"):
        return _check(str(address), _OPTION)
    given = os.environ.get(_VARIABLE, "")
    return _check(given, _VARIABLE) if given not in ("", "auto") else _cluster_of_this_machine()


def _check(address: str, source: str) -> str:
    if address.startswith("ray://"):
        raise AddressError(
            f"{source} is {address}: Ray Data does not work through the Ray client (ray://). Submit the run as a job "
            "with the address of the dashboard, such as http://10.0.0.1:8265, or start it on a machine of the cluster "
            "with --ray-address auto or the head's host:port."
        )
    if dashboard_of(address):
        raise AddressError(
            f"{source} is {address}, a dashboard, to which only `run` can be submitted: start the command on a machine "
            "of the cluster with --ray-address auto, or give the head's host:port there."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in host:
        raise AddressError(
            f"{source} is {address!r}: give a dashboard, such as http://10.0.0.1:8265; on a machine of the cluster "
            "host:port, such as 10.0.0.1:6379, or auto; or local."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise StageError(f"No Ray cluster answers at {address}; check {source}.") from error
    if not _is_node():
        raise StageError(
            f"{source} is {address}, but this machine is no node of that cluster, and Ray takes drivers only there: "
            f"submit the run as a job with --ray-address=http://{host}:8265 (the port of its dashboard)."
        )
    return address


def _is_node() -> bool:
    """Whether Ray runs on this machine."""
    import psutil

    return any(process.info["name"] in ("raylet", "raylet.exe") for process in psutil.process_iter(["name"]))


def _cluster_of_this_machine() -> str:
    import ray

    from stages.ray_tools.cluster import connect  # it imports this module

    connect("auto", show_logs=False)
    try:
        return str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()
