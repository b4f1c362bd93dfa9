"""The Ray cluster of a run or a server: a local one that ends with this process, or one that is running already.

`stages.ray_tools.addresses` says which.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from stages.contract import StageError
from stages.ray_tools.addresses import JOB_VARIABLE
from stages.ray_tools.placement import cpu_nodes
from stages.ray_tools.runtime_environment import runtime_environment

#: Ray's processes must find each other within 30 seconds, which a busy machine may miss; Ray has no setting for it.
START_ATTEMPTS = 4


def logical_cpus() -> int:
    """CPUs that a local Ray may hand out.

    More than the machine has: Ray Data needs one for each operator of a pipeline at the same time, and waits for ever
    when an actor pool has taken the last one (seen with 2). The runner decides what really runs side by side.
    """
    return max(8, 4 * (os.cpu_count() or 1))


def cluster_cores() -> int:
    """Cores for work without GPUs of the cluster that this process is connected to."""
    return sum(node_cores())


def node_cores() -> list[int]:
    """Cores of each node of that cluster that does work without GPUs, one at least.

    A local Ray has more CPUs than this machine has cores (see `logical_cpus`), but that many busy tasks would only
    compete for the cores, and each takes memory.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = [(node["NodeID"], int(node["Resources"].get("CPU", 0))) for node in cpu_nodes(ray.nodes())]
    return [min(cpus, os.cpu_count() or 1) if node == here else cpus for node, cpus in nodes if cpus] or [1]


def nodes_may_join() -> bool:
    """Whether the cluster can grow: a local Ray listens on the loopback interface, where no other machine is."""
    import ray

    return any(not node["NodeManagerAddress"].startswith("127.") for node in ray.nodes() if node["Alive"])


@contextmanager
def local_cluster(*, dashboard: bool = True) -> Iterator[str]:
    """Start a Ray head on the loopback interface; yield its address. It ends with this process, even by SIGKILL.

    The kernel ties Ray's processes to the thread that starts them: call this from the main thread. Ray Train needs the
    dashboard, for its state API.

    Raises:
        StageError: Ray did not start in several attempts.
    """
    import ray

    # In a Ray job this Ray is still one of its own: it cannot have the runtime environment of the job's cluster.
    os.environ.pop(JOB_VARIABLE, None)
    with _keeping_sigterm():
        context = _start(dashboard)
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


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray sets one that ends this process at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def connect(address: str, working_dir: str | None = None, *, show_logs: bool = True) -> None:
    """Join the cluster at `address` as a driver.

    Args:
        address: host:port of the head.
        working_dir: The code, for workers of a cluster that does not share our disk; None: a local cluster.
        show_logs: Print what workers print.

    Raises:
        StageError: The cluster does not take this driver: another version of Ray or Python, no or a wrong token.
    """
    import ray

    environment = runtime_environment(working_dir) if working_dir else None
    level = logging.WARNING if show_logs else logging.ERROR
    with _printed() as printed:
        try:
            ray.init(address=address, runtime_env=environment, logging_level=level, log_to_driver=show_logs)
        except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            raise StageError(refusal(address, error, printed.text())) from error
        finally:
            if show_logs:
                printed.show()


def refusal(address: str, error: Exception, printed: str) -> str:
    """Why a cluster does not take this driver, from Ray's error and from what Ray has printed."""
    if "Could not find any running Ray instance" in str(error):
        return (
            f"--ray-address {address} finds no running Ray cluster: start one with `ray start --head`, set "
            "RAY_ADDRESS, or leave --ray-address out to start a local Ray for this run."
        )
    if "Version mismatch" in str(error):
        versions = " ".join(str(error).split()).partition("Version mismatch: ")[2]
        return f"The Ray cluster at {address} has other versions than this machine; install the same here: {versions}"
    if "authentication" in f"{type(error).__name__} {error}".lower() or "InvalidAuthToken" in printed:
        return (
            f"The Ray cluster at {address} does not accept this machine's token: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the cluster's."
        )
    return f"The Ray cluster at {address} cannot be joined: {str(error).strip().splitlines()[0]}"


@dataclass
class _Printed:
    """What this process has printed to standard error, with the C++ part of Ray."""

    file: IO[bytes]
    stderr: int

    def text(self) -> str:
        self.file.seek(0)
        return self.file.read().decode(errors="replace")

    def show(self) -> None:
        os.write(self.stderr, self.text().encode())


@contextmanager
def _printed() -> Iterator[_Printed]:
    """Hold back what is printed to standard error: Ray says only there why it cannot connect, many times."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield _Printed(file, stderr)
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


@contextmanager
def connected_cluster(address: str, working_dir: str) -> Iterator[str]:
    """Join a running cluster for the block, with a copy of the code in `working_dir`; yield its address."""
    import ray

    with _keeping_sigterm():  # which Ray takes away when it is left
        with _keeping_sigterm():
            connect(address, working_dir, show_logs=False)
        try:
            yield address
        finally:
            ray.shutdown()
