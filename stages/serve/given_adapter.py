"""An adapter from elsewhere on the configured base, for the command `serve`: no registry and no MLflow is needed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from model.devices import fastest_device
from model.guidance.settings import InferenceSettings
from model.painting.painter import RequestPainter
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import ClipScorer
from stages.config import Config
from stages.serve.served_model import ServedModel


def given_model(
    config: Config,
    *,
    title: str,
    fingerprint: str,
    backbone: str,
    adapter: str,
    loading: Mapping[str, Any],
    chosen: Mapping[str, Any],
) -> ServedModel:
    """A model to serve; each painter loads it for itself.

    Args:
        config: The section `inference`, the weights' dtype, and the CLIP that finds words.
        title: Of the model in messages and pictures.
        fingerprint: Of the adapter.
        backbone: An absolute path or a hub id.
        adapter: Likewise.
        loading: Arguments of `RealCustomPipeline.from_pretrained` for the image encoders.
        chosen: The values of the section `inference` that the user has chosen, by name.
    """
    load = functools.partial(
        _load,
        backbone,
        adapter,
        {**loading, "dtype": getattr(torch, config.backbone.dtype)},
        settings=config.inference,
        chosen=chosen,
        title=title,
        fingerprint=fingerprint,
        clip=config.evaluate.clip,
    )
    return ServedModel(title=title, adapter=fingerprint, load=load)


def _load(
    backbone: str,
    adapter: str,
    loading: Mapping[str, Any],
    *,
    settings: InferenceSettings,
    chosen: Mapping[str, Any],
    title: str,
    fingerprint: str,
    clip: str,
) -> RequestPainter:
    pipeline = RealCustomPipeline.from_pretrained(backbone, adapter, device=fastest_device(), **loading)
    return RequestPainter(
        pipeline=pipeline,
        settings=pipeline.settings_over(settings, chosen),
        title=title,
        adapter=fingerprint,
        clip=functools.partial(ClipScorer.of_backbone, backbone, clip),
    )
