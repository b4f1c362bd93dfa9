"""The models of a worker of the evaluation: the pipeline with the adapter, learned concepts, and the scorer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

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
        self.scorer = Scorer(config.evaluate, self.location, device)

    @contextmanager
    def concept(self, folder: str) -> Iterator[None]:
        """The block sees a learned concept in the pipeline, which paints text alone as the base model does."""
        load_concept(self.pipeline, on_this_machine(folder, "run.folder"))
        try:
            yield
        finally:
            unload_concepts(self.pipeline)
