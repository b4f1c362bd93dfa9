"""The models of a worker of the evaluation: the pipeline with the adapter, the learned concept, and the scorer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from model.backbone import load_backbone
from model.concepts.loading import load_concept
from model.pipeline import RealCustomPipeline
from stages.config import Config
from stages.evaluate.scorer import Scorer
from stages.inference import loading_options


@dataclass(frozen=True, kw_only=True)
class ModelPaths:
    """The weights that a worker loads."""

    backbone: str  # a folder or a hub id
    adapter: Path
    concept: Path


class Models:
    """Loads every model once; all parts of a worker share them."""

    def __init__(self, config: Config, paths: ModelPaths) -> None:
        device = "cuda" if config.evaluate.use_gpu else "cpu"
        self.paths = paths
        self.pipeline = RealCustomPipeline.from_pretrained(
            paths.backbone,
            paths.adapter,
            dtype=getattr(torch, config.backbone.dtype),
            device=device,
            **loading_options(config.backbone),
        )
        self.scorer = Scorer(config.evaluate, paths.backbone, device)

    @cached_property
    def concept_pipeline(self) -> RealCustomPipeline:
        """The base model with the learned concept in its text encoder, without an adapter."""
        base = self.pipeline.backbone
        backbone = load_backbone(self.paths.backbone, base.dtype, base.device)
        load_concept(backbone, self.paths.concept)
        return RealCustomPipeline(backbone)
