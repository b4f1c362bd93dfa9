"""The environment of a run's processes.

It is set once, before heavy imports, and Ray and all stages inherit it. Telemetry is off, Ray listens on the loopback
interface only and is asked without a proxy, and temporary files go into a folder that is removed at the end of the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.tracking_server import take_credentials

#: The path of a Unix socket has at most 107 characters; Ray adds about 70: ray/session_<date>_<time>_<pid>/sockets/...
MAX_RAY_FOLDER_LENGTH = 107 - 70

_QUIET = {
    # No telemetry.
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # img2dataset imports albumentations, which asks PyPI for updates
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "disabled",
    "RAY_task_oom_retries": "12",  # with growing pauses, minutes; by default a task without enough memory never ends
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # ray.train.report() waits for it: 1.85 s a call by default
    # OpenMP's threads spin for some microseconds, then sleep while they wait. A picture of the micro model takes 0.6 s
    # on two idle cores and 1.2 to 1.8 s on busy ones; without spinning 1.5 s and 1.4 to 2.2 s.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "10000",
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",  # on Apple's GPUs, an operation that they lack is done on the CPU
    # A stage reports through its Reporter; libraries write to the stage's log, without progress bars.
    "DIFFUSERS_VERBOSITY": "error",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",  # about a minute, in which a server starts again; by default four minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # its errors are raised as well
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


_LOCAL_RAY = {
    # Without these a local Ray may use a token file that another program left in the home folder, and listens on all
    # interfaces. The second one has this effect on Linux too, despite its name. A cluster has its own rules.
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA driver (asked without importing torch)."""
    return Path("/dev/nvidiactl").exists()


def set_environment(profile: str, *, local_ray: bool = True) -> None:
    """Set the variables that all processes of a run inherit, except those that the user has set.

    Args:
        profile: Of the configuration.
        local_ray: The processes use a Ray of their own, or none; they join no cluster.
    """
    variables = _QUIET | (_LOCAL_RAY if local_ray else {})
    if local_ray and not has_gpu():  # the nodes of a cluster may have other devices than this machine
        variables["DS_ACCELERATOR"] = "cpu"
    if profile == "micro":
        variables["HF_HUB_OFFLINE"] = (
            "1"  # needs nothing from the hub; without a network a request would only wait for its timeout
        )
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    _exempt_loopback_from_proxies()
    take_credentials()


def _exempt_loopback_from_proxies() -> None:
    """Let the processes of a run reach each other when the user has a proxy: no proxy can reach this machine."""
    if not any(name.lower().endswith("_proxy") and name.lower() != "no_proxy" for name in os.environ):
        return  # a variable alone would switch off the proxies of macOS's settings
    # Programs differ in which of the two they read first.
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in _LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


@contextmanager
def temporary_folder(run_folder: Path) -> Iterator[Path]:
    """A folder for all temporary files of the block (RAY_TMPDIR, TMPDIR); removed at its end.

    It is in the run folder if that can be written to and its path is short enough for Ray's Unix sockets, else in
    TMPDIR, else in /tmp. All
    processes that were started in the block end with it, even if this one is killed (see
    `pipelines.execution.cleanup`).
    """
    name = f"realword-{os.getuid()}"
    parents = [run_folder / ".ray", Path(tempfile.gettempdir(), name), Path("/tmp", name)]
    folders = [parent / str(os.getpid()) for parent in parents]
    folder = next((path for path in folders[:-1] if _can_make(path)), folders[-1])
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    before = {variable: os.environ.get(variable) for variable in ("RAY_TMPDIR", "TMPDIR")}
    cleanup = subprocess.Popen(
        [sys.executable, "-m", "pipelines.execution.cleanup", str(folder)],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
        start_new_session=True,  # Ctrl-C does not reach it
    )
    os.environ.update(RAY_TMPDIR=str(folder), TMPDIR=str(folder / "tmp"))
    tempfile.tempdir = None  # tempfile must read TMPDIR again
    try:
        yield folder
    finally:
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value
        tempfile.tempdir = None
        cleanup.communicate()


def _can_make(folder: Path) -> bool:
    """Make a folder for Ray; False when its path is too long, or it is in a place that cannot be written to."""
    if len(str(folder)) > MAX_RAY_FOLDER_LENGTH:
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True)
    except OSError:
        return False
    return True
