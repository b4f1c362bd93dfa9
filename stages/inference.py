"""The configuration in the words of `model.pipeline`: shared by evaluate, register, generate and serve."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from model.errors import ModelError
from model.guidance.settings import InferenceSettings
from stages.config import BackboneConfig
from stages.ray_tools.errors import worker_errors_as_stage_errors


def backbone_location(config: BackboneConfig, inputs: Mapping[str, Path]) -> str:
    """Where the backbone lies: the folder or hub id that was configured, or what the stage `base` has made.

    A folder's path is absolute: Ray's workers have another working directory.
    """
    location = config.weights or str(inputs["base"] / "backbone")
    return str(Path(location).resolve()) if Path(location).is_dir() else location


def loading_options(config: BackboneConfig) -> dict[str, Any]:
    """What `RealCustomPipeline.from_pretrained` needs besides the places of the weights; JSON-ready."""
    return {
        "image_encoders": list(config.image_encoders),
        "shallow_layers": [list(layers) for layers in config.shallow_layers],
        "reference_size": config.reference_size,
        "tiles": config.high_resolution_tiles,
    }


def painting_options(config: InferenceSettings) -> dict[str, Any]:
    """What a call of the pipeline needs besides prompts, subjects and seeds; JSON-ready."""
    return {
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "image_guidance_scale": config.image_guidance_scale,
        "gamma_num": config.gamma_num,
        "mask_scope": config.mask_scope,
        "mask_steps": config.mask_steps,
        "mask_every": config.mask_every,
        "mask_cross_downscales": list(config.mask_cross_downscales),
        "mask_self_downscales": list(config.mask_self_downscales),
        "mask_binary": config.mask_binary,
        "visual_scale": config.visual_scale,
    }


def model_errors_as_stage_errors() -> AbstractContextManager[None]:
    """Turn the errors of `model/` that a user can fix into StageErrors, also when a Ray worker raised them."""
    return worker_errors_as_stage_errors(ModelError)
