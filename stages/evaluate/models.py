"""The models of a worker of the evaluation: the pipeline with the adapter, learned concepts, and the scorer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from model.backbone import load_backbone
from model.concepts.loading import load_concept, unload_concepts
from model.pipeline import RealCustomPipeline
from stages.config import Config
from stages.evaluate.scorer import Scorer
from stages.inference import backbone_setting, check_image_encoders, loading_options, on_this_machine
from stages.storage import StorePath


@dataclass(frozen=True, kw_only=True)
class ModelPaths:
    """The weights that a worker loads, by path or URI."""

    backbone: str  # or a hub id
    adapter: StorePath


class Models:
    """Loads every model once; all parts of a worker share them."""

    def __init__(self, config: Config, paths: ModelPaths) -> None:
        device = "cuda" if config.evaluate.use_gpu else "cpu"
        check_image_encoders(config.backbone.image_encoders)
        self.location = on_this_machine(paths.backbone, backbone_setting(config.backbone))
        self.pipeline = RealCustomPipeline.from_pretrained(
            self.location,
            on_this_machine(str(paths.adapter), "run.folder"),
            dtype=getattr(torch, config.backbone.dtype),
            device=device,
            **loading_options(config.backbone),
        )
        self._concept: str | None = None
        self.scorer = Scorer(config.evaluate, self.location, device)

    @cached_property
    def _plain_pipeline(self) -> RealCustomPipeline:
        base = self.pipeline.backbone
        return RealCustomPipeline(load_backbone(self.location, base.dtype, base.device))

    def concept_pipeline(self, folder: str) -> RealCustomPipeline:
        """The base model with a learned concept instead of the last one, without an adapter."""
        if folder != self._concept:
            unload_concepts(self._plain_pipeline)
            load_concept(self._plain_pipeline, on_this_machine(folder, "run.folder"))
            self._concept = folder
        return self._plain_pipeline
