"""The environment that a run's processes live in.

It is set once, before anything heavy is imported, and inherited by Ray and by every stage. Telemetry is off, Ray stays
on the loopback interface, and temporary files go into a folder that ends with the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: A unix socket's path may have 107 characters, and Ray adds about 70: ray/session_<date>_<time>_<pid>/sockets/...
LONGEST_RAY_FOLDER = 107 - 70

_QUIET = {
    # Nothing phones home.
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # img2dataset imports albumentations, which asks PyPI for updates
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "disabled",
    # A local Ray: without these its behaviour depends on a token file left in the home folder by another program, and
    # it listens on every interface. The second has an effect on Linux too, whatever its name says.
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # ray.train.report() waits for it: 1.85 s a call by default
    # One voice: a stage reports through its Reporter; engines write to its log without bars and duplicates.
    "DIFFUSERS_VERBOSITY": "error",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # it tells of every table that it creates, and what goes wrong it raises too
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA driver (asked without importing torch)."""
    return Path("/dev/nvidiactl").exists()


def set_environment(profile: str) -> None:
    """Set the variables that every process of a run inherits. What the user has set already stays."""
    variables = dict(_QUIET)
    if not has_gpu():
        variables["DS_ACCELERATOR"] = "cpu"
    if profile == "micro":
        variables["HF_HUB_OFFLINE"] = "1"  # everything it needs is here; a look-up would only wait for a time-out
    for name, value in variables.items():
        os.environ.setdefault(name, value)


@contextmanager
def temporary_folder(run_folder: Path) -> Iterator[Path]:
    """Where Ray and everybody else put temporary files (RAY_TMPDIR, TMPDIR) while the block runs; gone afterwards.

    It lies in the run folder where the path is short enough for Ray's unix sockets, else in the system's own place
    (TMPDIR), else in /tmp. With it go all processes that were started in the block, even if this one is killed (see
    `pipelines.execution.cleanup`).
    """
    mine = f"realword-{os.getuid()}"
    homes = [run_folder / ".ray", Path(tempfile.gettempdir(), mine), Path("/tmp", mine)]
    folders = [home / str(os.getpid()) for home in homes]
    folder = next((found for found in folders if len(str(found)) <= LONGEST_RAY_FOLDER), folders[-1])
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "tmp").mkdir(parents=True)
    before = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR")}
    watcher = subprocess.Popen(
        [sys.executable, "-m", "pipelines.execution.cleanup", str(folder)],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
        start_new_session=True,  # Ctrl-C is not for it
    )
    os.environ.update(RAY_TMPDIR=str(folder), TMPDIR=str(folder / "tmp"))
    tempfile.tempdir = None  # forget the place that was looked up before
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        tempfile.tempdir = None
        watcher.communicate()
