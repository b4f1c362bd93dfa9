"""The whole configuration: one section for each stage, and what must fit together across sections.

A section stands beside its stage, in `stages/<name>/config.py`; `run`, `compute`, `backbone` and `inference` are
shared. The defaults are those of the profile `micro`; `pipelines/config/profiles/*.yaml` holds what the other profiles
change. No heavy import belongs here.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.guidance.settings import InferenceSettings
from model.settings import STRICT, Text
from stages.base.config import BaseConfig
from stages.cache_latents.config import CacheLatentsConfig
from stages.compute_config import ComputeConfig
from stages.contextualizer.config import ContextualizerConfig
from stages.curriculum.config import CurriculumConfig
from stages.customize.config import CustomizeConfig
from stages.evaluate.config import EvaluateConfig
from stages.filter.config import FilterConfig
from stages.ingest.config import IngestConfig
from stages.microworld.config import MicroworldConfig
from stages.multiview.config import MultiviewConfig
from stages.prompts.config import PromptsConfig
from stages.register.config import RegisterConfig
from stages.serve.config import ServeConfig
from stages.shared_config import BackboneConfig, RunConfig
from stages.train_adapter.config import TrainAdapterConfig

#: Downscales of the micro Stable Diffusion's attention grids (`model.micro_sd.architectures`).
MICRO_DOWNSCALES = (1, 2, 4)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """Everything a run depends on, one section for each stage."""

    profile: Text = "micro"
    run: RunConfig = field(default_factory=RunConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    microworld: MicroworldConfig = field(default_factory=MicroworldConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    multiview: MultiviewConfig = field(default_factory=MultiviewConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    cache_latents: CacheLatentsConfig = field(default_factory=CacheLatentsConfig)
    train_adapter: TrainAdapterConfig = field(default_factory=TrainAdapterConfig)
    contextualizer: ContextualizerConfig = field(default_factory=ContextualizerConfig)
    customize: CustomizeConfig = field(default_factory=CustomizeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)

    @model_validator(mode="after")
    def _batch_fits_workers(self) -> Config:
        if problem := self.train_adapter.trainer.batch_problem(self.curriculum.batch_size, "train_adapter.trainer"):
            raise ValueError(f"curriculum.batch_size {problem}")
        return self

    @model_validator(mode="after")
    def _buckets_fit_resolutions(self) -> Config:
        multiple = self.curriculum.bucket_multiple
        resolutions = {
            "backbone.resolution": self.backbone.resolution,
            "curriculum.first_resolution": self.curriculum.first_resolution,
        }
        for key, resolution in resolutions.items():
            if multiple is not None and resolution is not None and resolution % multiple:
                raise ValueError(f"{key} must be a multiple of curriculum.bucket_multiple={multiple}, not {resolution}")
        return self

    @model_validator(mode="after")
    def _plan_fits_method(self) -> Config:
        plan = self.curriculum
        if self.train_adapter.method == "realcustom" and (plan.multiview_probability != 0 or plan.max_crop_ratio != 1):
            raise ValueError(
                "train_adapter.method=realcustom learns from pictures that are their own references: set "
                "curriculum.multiview_probability to 0 and curriculum.max_crop_ratio to 1, not "
                f"{plan.multiview_probability} and {plan.max_crop_ratio:g}"
            )
        return self

    @model_validator(mode="after")
    def _masks_fit_backbone(self) -> Config:
        if self.backbone.weights is not None:
            return self
        for key in ("mask_cross_downscales", "mask_self_downscales"):
            wanted = getattr(self.inference, key)
            if not set(wanted) <= set(MICRO_DOWNSCALES):
                raise ValueError(f"inference.{key} takes downscales of the micro backbone, 1, 2 and 4, not {wanted}")
        return self

    @model_validator(mode="after")
    def _judge_is_there(self) -> Config:
        """A file instead of a folder is refused for what it is, before anything runs."""
        weights = self.backbone.weights
        has_judge = weights is None or Path(weights).is_file() or (Path(weights) / "judge").is_dir()
        if self.evaluate.similarity == "judge" and not has_judge:
            raise ValueError(
                f"evaluate.similarity=judge needs the judge of a micro backbone, which backbone.weights={weights!r} "
                "lacks; set evaluate.similarity to clip or dino"
            )
        return self
