"""The Ray cluster of a run or a server: a local one that ends with this process, or one that is running already."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stages.contract import StageError

#: Ray's processes must find each other within 30 seconds, which a busy machine may miss; Ray has no setting for it.
START_ATTEMPTS = 4

#: An address that answers at all does so in this time.
CONNECT_SECONDS = 10


class AddressError(StageError):
    """The address of a cluster is of no form that this pipeline takes."""


def logical_cpus() -> int:
    """CPUs that a local Ray may hand out.

    More than the machine has: Ray Data needs one for each operator of a pipeline at the same time, and waits for ever
    when an actor pool has taken the last one (seen with 2). The runner decides what really runs side by side.
    """
    return max(8, 4 * (os.cpu_count() or 1))


def cluster_cores() -> int:
    """Cores of the cluster that this process is connected to.

    A local Ray has more CPUs than this machine has cores (see `logical_cpus`), but that many busy tasks would only
    compete for the cores, and each takes memory.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = [(node["NodeID"], int(node["Resources"].get("CPU", 0))) for node in ray.nodes() if node["Alive"]]
    return max(1, sum(min(cpus, os.cpu_count() or 1) if node == here else cpus for node, cpus in nodes))


@contextmanager
def local_cluster(*, dashboard: bool = True) -> Iterator[str]:
    """Start a Ray head on the loopback interface; yield its address. It ends with this process, even by SIGKILL.

    The kernel ties Ray's processes to the thread that starts them: call this from the main thread. Ray Train needs the
    dashboard, for its state API.

    Raises:
        StageError: Ray did not start in several attempts.
    """
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    context = _start(dashboard)
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler ends this process at once
    try:
        yield str(context.address_info["gcs_address"])
    finally:
        ray.shutdown()


def _start(dashboard: bool) -> Any:
    import ray

    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            return ray.init(
                address="local",  # whatever RAY_ADDRESS says
                num_cpus=logical_cpus(),
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
        except Exception as error:  # Ray raises a bare Exception when its processes were too slow
            ray.shutdown()
            _end_children()
            if attempt == START_ATTEMPTS:
                reason = str(error).strip().splitlines()[0]
                raise StageError(f"Ray did not start in {attempt} attempts: {reason}") from error


def _end_children() -> None:
    """End what a failed start leaves behind. This process has no other children so early."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        if child.is_running():
            child.kill()
    psutil.wait_procs(children, timeout=5)


def find_cluster(address: str) -> str | None:
    """The host:port of the running cluster that `--ray-address` means; None for `local`, a cluster of our own.

    `auto` means the cluster of RAY_ADDRESS, else one that runs on this machine.

    Raises:
        AddressError: The address has another form.
        StageError: No cluster answers there. Ray itself would try for many minutes.
    """
    if address == "local":
        return None
    if address != "auto":
        return _check(address, "--ray-address")
    given = os.environ.get("RAY_ADDRESS", "")
    return _check(given, "RAY_ADDRESS") if given not in ("", "auto") else _cluster_of_this_machine()


def _check(address: str, source: str) -> str:
    if address.startswith("ray://"):
        raise AddressError(
            f"{source} is {address}: Ray Data does not work through the Ray client (ray://). Start the pipeline on a "
            "machine of the cluster with --ray-address auto, or give the head's host:port, such as 10.0.0.1:6379."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise AddressError(f"{source} is {address!r}: give host:port, such as 127.0.0.1:6379, or auto, or local.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise StageError(f"No Ray cluster answers at {address}; check {source}.") from error
    return address


def _cluster_of_this_machine() -> str:
    import ray

    try:
        ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise StageError(
            "--ray-address auto finds no running Ray cluster: start one with `ray start --head`, set RAY_ADDRESS, or "
            "leave --ray-address out to start a local Ray for this run."
        ) from error
    try:
        return str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def connect(address: str, working_dir: str | None = None, *, show_logs: bool = True) -> None:
    """Join the cluster at `address` as a driver; `working_dir` is shipped to clusters that do not share our disk."""
    import ray

    environment = {"working_dir": working_dir, "excludes": ["runs", ".venv", ".git"]} if working_dir else None
    level = logging.WARNING if show_logs else logging.ERROR
    ray.init(address=address, runtime_env=environment, logging_level=level, log_to_driver=show_logs)


@contextmanager
def connected_cluster(address: str, working_dir: str) -> Iterator[str]:
    """Join a running cluster for the block, with a copy of the code in `working_dir`; yield its address."""
    import ray

    connect(address, working_dir, show_logs=False)
    try:
        yield address
    finally:
        ray.shutdown()
