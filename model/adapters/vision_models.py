"""Vision models from transformers' folders and the hub: the tower alone, whole, and its normalisation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPVisionModel, SiglipVisionModel
from transformers.utils import cached_file

from model.checkpoint_files import describe_file
from model.errors import ModelError
from model.files import read_text
from model.pretrained import load_pretrained, split_revision, weights_problem

#: Types whose checkpoints have a text tower too, and the class of the vision tower alone.
_TOWERS: dict[str, Any] = {
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
}
_HALF = (0.5, 0.5, 0.5)  # of pictures in [-1, 1]
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
#: Mean and std that models of a type were trained with, for folders without a preprocessor's configuration.
_NORMALIZATION = {
    "siglip": (_HALF, _HALF),
    "siglip_vision_model": (_HALF, _HALF),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "dinov2": _IMAGENET,
    "dinov2_with_registers": _IMAGENET,
}
#: Configurations of image processors, the first that exists counts: of an encoder, and of an encoder with a tokenizer.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_UNUSED_WEIGHTS = ("head.", "pooler.", "vision_model.head.")  # of a pooled feature, which no adapter reads


class ImageEncoderError(ModelError):
    """The image encoders cannot be loaded, or do not fit together."""


def load_vision_model(location: str, dtype: torch.dtype) -> nn.Module:
    """The vision model at a location, in transformers' layout; of CLIP and SigLIP the vision tower alone.

    Args:
        location: A folder or a hub id, `org/name` or `org/name@revision`.
        dtype: Of its weights.

    Raises:
        ImageEncoderError: It is missing, damaged or of another kind; says what to do.
    """
    _check_folder(location)
    name, options = split_revision(location)
    try:
        kind = _class_of(location, AutoConfig.from_pretrained(name, **options))
        with _quiet():
            model, info = load_pretrained(kind, location, dtype=dtype, output_loading_info=True)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ImageEncoderError(f"image encoder {location!r} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(_UNUSED_WEIGHTS))
    if missing:
        raise ImageEncoderError(
            f"image encoder {location!r}: its weights lack {len(missing)} tensors, such as {missing[0]}; download it "
            "again, in transformers' layout."
        )
    vision: nn.Module = getattr(model, "vision_model", model)
    return vision


def _class_of(location: str, config: Any) -> Any:
    """The class that loads the vision tower of a configuration's type."""
    vision = getattr(config, "vision_config", config)
    if not isinstance(getattr(vision, "patch_size", None), int) or not hasattr(vision, "image_size"):
        raise ImageEncoderError(
            f"image encoder {location!r} is a model of type {config.model_type}; one of {', '.join(_NORMALIZATION)} is "
            "needed."
        )
    return _TOWERS.get(config.model_type, AutoModel)


def normalization(location: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of an encoder: of its image processor, else those that models of its type were trained with.

    An encoder that is part of a backbone, such as the micro one's, takes pictures in [-1, 1].

    Raises:
        ImageEncoderError, TextError: A file is damaged, or neither says the values.
    """
    settings = next(filter(None, (_read(location, name) for name in _PROCESSORS)), {})
    settings = settings.get("image_processor", settings)
    if settings.get("do_normalize") is False:
        return (0.0,) * 3, (1.0,) * 3
    given = settings.get("image_mean"), settings.get("image_std")
    mean, std = (own if own is not None else other for own, other in zip(given, _of_type(location), strict=True))
    if mean is None or std is None:
        raise ImageEncoderError(
            f"image encoder {location!r} has no preprocessor_config.json with image_mean and image_std; download it, "
            "or write the values that the encoder was trained with."
        )
    return _channels(location, "image_mean", mean), _channels(location, "image_std", std)


def _of_type(location: str) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    if (Path(location).parent / "model_index.json").is_file():
        return _HALF, _HALF
    return _NORMALIZATION.get((_read(location, "config.json") or {}).get("model_type", ""), (None, None))


def _channels(location: str, name: str, values: Any) -> Sequence[float]:
    """The three channels' values; one number is for all."""
    channels = [values] * 3 if isinstance(values, int | float) else values
    is_valid = isinstance(channels, list | tuple) and all(isinstance(value, int | float) for value in channels)
    if not is_valid or len(channels) != 3 or (name == "image_std" and min(channels) <= 0):
        raise ImageEncoderError(f"image encoder {location!r}: {name} is {values}; it must be three numbers.")
    return channels


def _read(location: str, name: str) -> dict[str, Any] | None:
    """A JSON file of an encoder; None if there is none."""
    hub_id, options = split_revision(location)
    path = cached_file(hub_id, name, _raise_exceptions_for_missing_entries=False, **options)
    if path is None:
        return None
    try:
        values = json.loads(read_text(Path(path)))
    except json.JSONDecodeError as error:
        raise ImageEncoderError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ImageEncoderError(f"{path} holds no JSON object.")
    return values


def _check_folder(location: str) -> None:
    """What a local location is, if it is no folder of an encoder."""
    place = Path(location)
    if place.is_file():
        raise ImageEncoderError(
            f"image encoder {location!r} is {describe_file(place)}; give the folder that its config.json is in."
        )
    if not place.is_dir():
        return
    inner = sorted(path.parent for path in [*place.glob("*/config.json"), *place.glob("snapshots/*/config.json")])
    if not (place / "config.json").is_file():
        instead = f"it holds one: give {inner[-1]}" if inner else "download the whole encoder, in transformers' layout"
        raise ImageEncoderError(f"image encoder {location!r}: there is no config.json; {instead}.")
    problem = weights_problem(place)
    if problem is not None:
        raise ImageEncoderError(f"image encoder {location!r}: {problem}.")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """No warning that lists the text tower's weights, which are left out on purpose."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
