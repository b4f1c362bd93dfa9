"""How many painters there are, and what they ask of the cluster."""

from __future__ import annotations

from typing import Any

import pytest

from stages.serve.app import painters_application
from stages.serve.config import ServeConfig
from stages.serve.served_model import ServedModel

#: Settings, GPUs of the cluster; GPUs of a painter, painters more during a change of the model (percent).
GPUS: dict[str, tuple[dict[str, Any], float, float, int]] = {
    "no GPU": ({}, 0, 0, 100),
    "GPUs that are not asked for": ({"replicas": 2}, 8, 0, 100),
    "one of one": ({"use_gpu": True}, 1, 0.5, 100),
    "one of two": ({"use_gpu": True}, 2, 1, 100),
    "two of two": ({"use_gpu": True, "replicas": 2}, 2, 1, 0),
    "two of three": ({"use_gpu": True, "replicas": 2}, 3, 1, 100),
    "one to two of two": ({"use_gpu": True, "max_replicas": 2}, 2, 0.5, 100),
    "one to two of three": ({"use_gpu": True, "max_replicas": 2}, 3, 1, 100),
    "two to four of four": ({"use_gpu": True, "replicas": 2, "max_replicas": 4}, 4, 1, 0),
}


def options_of(settings: ServeConfig, gpus: float = 0) -> Any:
    application = painters_application(ServedModel(title="title", adapter="adapter", load=object), settings, gpus)
    return application._bound_deployment


@pytest.mark.parametrize("case", GPUS)
def test_a_new_model_finds_room_beside_the_old_one(case: str) -> None:
    settings, gpus, share, surge = GPUS[case]
    painter = options_of(ServeConfig(**settings), gpus)
    assert painter.ray_actor_options["num_gpus"] == share
    assert painter._deployment_config.max_surge_percent == surge


def test_more_painters_are_started_only_with_a_maximum() -> None:
    assert options_of(ServeConfig(replicas=3)).num_replicas == 3
    scaling = options_of(
        ServeConfig(replicas=2, max_replicas=5, max_batch_size=3)
    )._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3)
    with pytest.raises(ValueError, match="max_replicas=1 is below replicas=2"):
        ServeConfig(replicas=2, max_replicas=1)
