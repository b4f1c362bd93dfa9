"""What the command `generate` paints with: the adapter of a run on its base, or those that ship with the code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checksums import folder_checksums
from model.errors import ModelError
from model.methods.registry import read_method
from model.micro_sd.fingerprint import WeightsError
from model.micro_sd.shipped_adapter import find_shipped_model
from pipelines.config.keys import configuration_keys
from pipelines.config.loading import with_values
from pipelines.errors import PipelineError
from pipelines.store.store import Output, Store
from stages.config import Config
from stages.inference import backbone_location, loading_options
from stages.local_copies import local_copy

#: What an adapter depends on; another version's manifest may have more.
_BACKBONE_KEYS = [key for key in configuration_keys() if key.startswith("backbone.")]


@dataclass(frozen=True, kw_only=True)
class PaintingModel:
    """An adapter with its backbone, whose files have been verified.

    Attributes:
        description: For the user: which model this is, and of which run.
        title: Its name and version; None for an adapter that is not registered.
        fingerprint: Of the adapter.
        adapter: Its folder, or a hub id.
        backbone: A folder or hub id.
        loading: Arguments of `RealCustomPipeline.from_pretrained` for the image encoders.
    """

    description: str
    title: str | None
    fingerprint: str
    adapter: Path | str
    backbone: str
    loading: dict[str, Any]


def model_of_run(config: Config, store: Store) -> PaintingModel:
    """The latest adapter of a run folder, with the backbone and image encoders that it was trained on.

    Raises:
        PipelineError: There is none yet, or a file is damaged.
    """
    adapter = store.latest_outputs().get("train_adapter")
    if adapter is None:
        raise PipelineError(
            f"There is no trained adapter in {store.folder} yet; train it with "
            f"python pipeline.py run --stage train_adapter --profile {config.profile} --set run.folder={store.folder}."
        )
    inputs = adapter.manifest.inputs
    base = store.output("base", inputs["base"]) if "base" in inputs else None
    for output in (adapter, base):
        _check(output, thorough=True)
    backbone = trained_on(config, adapter).backbone
    title = _registered_title(store, adapter)
    return PaintingModel(
        description=f"{title or 'an adapter that is not registered'} (adapter {adapter.fingerprint}) of {store.folder}",
        title=title,
        fingerprint=adapter.fingerprint,
        adapter=local_copy(adapter.folder / "adapter"),
        backbone=backbone_location(backbone, {"base": local_copy(base.folder)} if base else {}),
        loading=loading_options(backbone),
    )


def model_of_adapter(config: Config, adapter: str) -> PaintingModel:
    """An adapter from elsewhere on the configured base, with the configured image encoders.

    Args:
        config: Section `backbone`.
        adapter: A folder or hub id.

    Raises:
        PipelineError: No base is configured, or there is no such adapter.
    """
    if config.backbone.weights is None:
        raise PipelineError(
            f"backbone.adapter: {adapter} needs the base that it was made for: set backbone.weights to its folder or "
            "hub id, or choose a profile with one, such as --profile sdxl."
        )
    try:
        _, own = read_method(adapter)
    except ModelError as error:
        raise PipelineError(str(error)) from error
    except OSError as error:
        raise PipelineError(
            f"backbone.adapter: {adapter} is no folder with config.json, and no model on the hub that can be reached; "
            "released weights become a folder with python -m model.adapters.released_weights FILE FOLDER."
        ) from error
    folder = Path(adapter)
    is_local = folder.is_dir()
    checksums = json.dumps(folder_checksums(folder), sort_keys=True) if is_local else adapter
    fingerprint = hashlib.sha256(checksums.encode()).hexdigest()[:12]
    return PaintingModel(
        description=f"the adapter {adapter} (fingerprint {fingerprint}, inference: {own.get('inference', 'paper')})",
        title=None,
        fingerprint=fingerprint,
        adapter=str(folder.resolve()) if is_local else adapter,
        backbone=backbone_location(config.backbone, {}),
        loading=loading_options(config.backbone),
    )


def trained_on(config: Config, adapter: Output) -> Config:
    """The configuration with the section `backbone` that an adapter was trained with."""
    recorded = adapter.manifest.config
    return with_values(config, {key: recorded[key] for key in _BACKBONE_KEYS if key in recorded})


def shipped_model(store: Store) -> PaintingModel:
    """The base and adapter that ship with the code.

    Raises:
        PipelineError: A file is missing or damaged.
    """
    try:
        shipped = find_shipped_model()
    except WeightsError as error:
        raise PipelineError(str(error)) from error
    return PaintingModel(
        description=f"{shipped.title} (adapter {shipped.fingerprint}), the base and adapter that ship with Realword: "
        f"there is no trained adapter in {store.folder} yet",
        title=shipped.title,
        fingerprint=shipped.fingerprint,
        adapter=shipped.adapter,
        backbone=str(shipped.base),
        loading=dict(shipped.loading),
    )


def _registered_title(store: Store, adapter: Output) -> str | None:
    """The name and version under which an adapter was registered last; None when it was not."""
    registered = store.latest_outputs().get("register")
    if registered is None or registered.manifest.inputs.get("train_adapter") != adapter.fingerprint:
        return None
    _check(registered, thorough=False)
    entry = json.loads((registered.folder / "registered.json").read_text())
    return f"{entry['name']} version {entry['version']}"


def _check(output: Output | None, *, thorough: bool) -> None:
    if output is not None and (damage := output.damage(thorough=thorough)):
        raise PipelineError(damage)
