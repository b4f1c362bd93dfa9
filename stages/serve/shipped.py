"""The base and adapter that ship with the code, for the command `serve`: no registry and no MLflow is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from model.devices import fastest_device
from model.errors import ModelError
from model.guidance.settings import InferenceSettings
from model.micro_sd.shipped_adapter import ShippedModel, find_shipped_model
from model.painting.painter import RequestPainter
from stages.config import Config
from stages.contract import StageError
from stages.serve.served_model import ServedModel


def shipped_model(config: Config) -> ServedModel:
    """Verify the shipped weights, once for all replicas.

    Args:
        config: The section `inference`, the model's name, and the weights' dtype.

    Raises:
        StageError: A file is missing or damaged.
    """
    try:
        shipped = find_shipped_model()
    except ModelError as error:
        raise StageError(str(error)) from error
    load = functools.partial(_load, shipped, config.inference, config.backbone.dtype)
    return ServedModel(title=shipped.title, adapter=shipped.fingerprint, load=load)


def shipped_model_of(config: Config) -> Callable[[], ServedModel]:
    """`shipped_model` for a configuration."""
    return functools.partial(shipped_model, config)


def _load(shipped: ShippedModel, settings: InferenceSettings, dtype: str) -> RequestPainter:
    pipeline = shipped.load(getattr(torch, dtype), fastest_device())
    return RequestPainter(
        pipeline=pipeline, settings=settings, title=shipped.title, adapter=shipped.fingerprint, clip=shipped.load_clip
    )
