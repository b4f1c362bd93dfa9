"""The environment variables of training workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

#: Torch's settings of its allocator; the second is the older name.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def worker_environment(*, use_gpu: bool, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Ray's runtime environment of a training's workers.

    On GPUs, torch's memory is in segments that grow, unless the driver's variables say otherwise: steps of different
    shapes (buckets, phases) would leave gaps that no later step fits into.
    """
    if not use_gpu:
        return {}
    given = {name: environment[name] for name in _ALLOCATOR if name in environment}
    return {"env_vars": given or {_ALLOCATOR[0]: "expandable_segments:True"}}
