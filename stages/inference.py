"""What the configuration means for `model.pipeline`, for all stages and commands that use the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from model.errors import ModelError
from stages.shared_config import BackboneConfig


def backbone_location(config: BackboneConfig, inputs: Mapping[str, Path]) -> str:
    """The backbone: the configured folder or hub id, or the output of the stage `base`.

    A folder's path is absolute, because Ray's workers have another working directory.
    """
    location = config.weights or str(inputs["base"] / "backbone")
    return str(Path(location).resolve()) if Path(location).is_dir() else location


def loading_options(config: BackboneConfig) -> dict[str, Any]:
    """The arguments of `RealCustomPipeline.from_pretrained` for the image encoders; JSON-ready."""
    return {
        "image_encoders": list(config.image_encoders),
        "shallow_layers": [list(layers) for layers in config.shallow_layers],
        "reference_size": config.reference_size,
        "tiles": config.high_resolution_tiles,
    }


def model_errors_as_stage_errors() -> AbstractContextManager[None]:
    """Turn errors of `model/` that a user can fix into StageErrors, also if a Ray worker has raised them."""
    from stages.ray_tools.errors import worker_errors_as_stage_errors  # imports Ray, which `generate` does not need

    return worker_errors_as_stage_errors(ModelError)
