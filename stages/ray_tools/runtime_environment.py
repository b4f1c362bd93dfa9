"""What the workers of a cluster get from the driver: the code, and variables of its environment; no secrets.

Workers of a local Ray inherit the driver's whole environment and need none of this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages.ray_tools.addresses import job_runtime_environment

#: Not part of the code. What .gitignore names is left out by Ray itself.
EXCLUDES = ("/runs", "/.venv", "/.git", "__pycache__")

#: Where the object store and the hub are. Credentials are each node's own: a role, a secret, its environment.
LOCATIONS = (
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "GOOGLE_CLOUD_PROJECT",
    "HF_ENDPOINT",
    "MLFLOW_S3_ENDPOINT_URL",
    "STORAGE_EMULATOR_HOST",
)

#: How libraries behave: no telemetry, no progress bars, no network where none is needed.
BEHAVIOUR = (
    "DIFFUSERS_VERBOSITY",
    "DO_NOT_TRACK",
    "GIT_PYTHON_REFRESH",
    "GOMP_SPINCOUNT",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
    "MLFLOW_LOGGING_LEVEL",
    "NO_ALBUMENTATIONS_UPDATE",
    "OMP_WAIT_POLICY",
    "RAY_DATA_DISABLE_PROGRESS_BARS",
    "RAY_TRAIN_ENABLE_PRINT_PATCH",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_VERBOSITY",
    "WANDB_MODE",
)


def runtime_environment(working_dir: str | None) -> dict[str, Any]:
    """Ray's `runtime_env` for a driver whose code is in `working_dir`, besides what its Ray job has already.

    Ray refuses a key that both the job and the driver have. Without `working_dir`, or with code that is installed as a
    package, the nodes have the code from their image.
    """
    job = job_runtime_environment() or {}
    variables = {**travelling(LOCATIONS), **travelling(BEHAVIOUR)}
    found: dict[str, Any] = {
        "env_vars": {name: value for name, value in variables.items() if name not in job.get("env_vars", {})}
    }
    if ships_code(working_dir):
        found |= {"working_dir": working_dir, "excludes": list(EXCLUDES)}
    return found


def ships_code(working_dir: str | None) -> bool:
    """Whether the driver itself sends its code to the nodes."""
    has_code = "working_dir" in (job_runtime_environment() or {})
    return working_dir is not None and not has_code and "site-packages" not in Path(working_dir).parts


def travelling(names: tuple[str, ...], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that are set, without those whose URL holds a password."""
    return {name: environment[name] for name in names if name in environment and not _has_secret(environment[name])}


def _has_secret(value: str) -> bool:
    try:
        return "@" in urlsplit(value).netloc
    except ValueError:  # no URL
        return False
