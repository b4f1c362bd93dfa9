"""What the configuration means for `model.pipeline`, for all stages and commands that use the pipeline."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from model.errors import ModelError
from stages.contract import StageError
from stages.local_copies import local_copy
from stages.shared_config import BackboneConfig
from stages.storage import StorePath, absolute, store_path


def backbone_location(config: BackboneConfig, inputs: Mapping[str, StorePath]) -> str:
    """The backbone: the configured folder or hub id, or the output of the stage `base`.

    A folder's path is absolute, because Ray's workers have another working directory. One in an object store is a URI.
    Where a model is loaded, `on_this_machine` says from where.
    """
    location = config.weights or str(absolute(inputs["base"] / "backbone"))
    return str(Path(location).resolve()) if Path(location).is_dir() else location


def backbone_setting(config: BackboneConfig) -> str:
    """The setting that `backbone_location` is of."""
    return "run.folder" if config.weights is None else "backbone.weights"


def on_this_machine(location: str, setting: str) -> str:
    """From where this machine reads a model: a folder's path, or a hub id. What is in an object store is copied once.

    Args:
        location: A folder's path or URI, or a hub id.
        setting: It is of.

    Raises:
        StageError: The machine, or the store, has no such folder.
    """
    if "://" in location:
        try:
            return str(local_copy(store_path(location)))
        except FileNotFoundError as error:
            raise StageError(
                f"{setting}: there is nothing at {location}: run the stage that writes it again."
            ) from error
    if Path(location).is_absolute() and not Path(location).exists():
        instead = "a URI" if setting == "run.folder" else "a hub id"
        raise StageError(
            f"{setting}: the machine {socket.gethostname()} has no {location}: put it there as on the other machines, "
            f"or set {setting} to {instead}."
        )
    return location


def check_image_encoders(locations: Iterable[str]) -> None:
    """Check that this machine has the image encoders that are folders; raises StageError."""
    for location in locations:
        on_this_machine(location, "backbone.image_encoders")


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
