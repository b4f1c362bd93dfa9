"""The Ray of a run: one local head that ends with this process, or a cluster that is there already."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.errors import PipelineError, UsageError

#: Ray gives its own processes 30 seconds to find each other, which a busy machine may not keep; it cannot be told more.
START_ATTEMPTS = 4


def logical_cpus() -> int:
    """CPUs that Ray may hand out on this machine.

    More than there are: Ray Data needs one for each operator of a pipeline at once and waits without a word when an
    actor pool has taken the last (seen with 2). What really runs side by side is decided by the runner.
    """
    return max(8, 4 * (os.cpu_count() or 1))


@contextmanager
def local_cluster() -> Iterator[str]:
    """Start a Ray head on the loopback interface; yield its address. It dies with this process, even by SIGKILL.

    The kernel ties Ray's processes to the thread that started them: call this from the main thread.

    Raises:
        PipelineError: Ray did not start, several times.
    """
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    context = _start()
    # Ray has put a handler of its own there, which ends this process without a word.
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield str(context.address_info["gcs_address"])
    finally:
        ray.shutdown()


def _start() -> Any:
    import ray

    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            return ray.init(
                num_cpus=logical_cpus(),
                include_dashboard=True,  # Ray Train asks the dashboard's state API how its controller is
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
                raise PipelineError(f"Ray did not start in {attempt} attempts: {reason}") from error


def _end_children() -> None:
    """End what a start that has failed left behind. Nothing else is a child of this process so early."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        if child.is_running():
            child.kill()
    psutil.wait_procs(children, timeout=5)


def check_address(address: str) -> None:
    """Find out whether there is a cluster at `address`.

    Raises:
        UsageError: The address is not host:port.
        PipelineError: Nobody listens there. Ray itself would try for many minutes.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--ray-address takes host:port, such as 127.0.0.1:6379, not {address!r}.")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise PipelineError(f"No Ray cluster answers at {address}; check --ray-address.") from error


def connect(address: str, working_dir: str | None = None) -> None:
    """Join the cluster at `address` as a driver; `working_dir` is shipped to clusters that do not share our disk."""
    import ray

    environment = {"working_dir": working_dir, "excludes": ["runs", ".venv", ".git"]} if working_dir else None
    ray.init(address=address, runtime_env=environment, logging_level=logging.WARNING, log_to_driver=True)
