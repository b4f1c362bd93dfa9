"""The methods' registry; and a third method, which needs one module and one entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from model.adapters.adapter import VisualAdapter, cross_attention_widths
from model.adapters.image_encoder import ImageEncoders
from model.adapters.visual_attention import KeysValues, VisualCondition
from model.backbone import Backbone
from model.guidance.denoising import Generation, Guidance, guide, predict_rows
from model.guidance.generation_branch import (
    DenoisingStep,
    GenerationBranch,
    SubjectMasks,
    reference_strengths,
)
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import References, Subject
from model.methods.method import Method
from model.methods.names import MethodName
from model.methods.registry import METHODS, load_adapter, method_of
from model.pipeline import RealCustomPipeline
from tests.support.adapter_tasks import make_task, randomize_values
from tests.support.tiny_models import ENCODERS
from tests.support.tiny_pipelines import subjects


class MeanAdapter(VisualAdapter):
    """One image token: the mean of the encoders' features."""

    method_name, paper = "Mean", "None"

    @register_to_config
    def __init__(self, layers: dict[str, int], image_width: int, token_width: int) -> None:
        super().__init__()
        self._add_keys_values(layers, image_width)

    def forward(self, tokens: Tensor) -> VisualCondition:
        return VisualCondition(self.keys_values(tokens.mean(1, keepdim=True)))


@dataclass(frozen=True)
class MeanBranch(GenerationBranch):
    pairs: list[KeysValues]

    @property
    def keys(self) -> int:
        return 1

    def keys_values(self, step: DenoisingStep, masks: SubjectMasks | None) -> list[KeysValues]:
        return self.pairs


class MeanMethod(Method[MeanAdapter]):
    """Without a mask, and with the target as reference."""

    name = "mean"
    adapter_class = MeanAdapter
    reference_is_target = True

    def new_adapter(self, unet: UNet2DConditionModel, image_width: int, **options: Any) -> MeanAdapter:
        return MeanAdapter(cross_attention_widths(unet), image_width, unet.config.cross_attention_dim)

    def training_condition(
        self,
        adapter: MeanAdapter,
        encoders: ImageEncoders,
        batch: Mapping[str, Tensor],
        noisy: Tensor,
        alpha_bar: Tensor,
    ) -> VisualCondition:
        condition: VisualCondition = adapter(encoders.tokens(batch["reference"]))
        return condition

    def generation_branch(
        self,
        adapter: MeanAdapter,
        encoders: ImageEncoders,
        subjects: Sequence[Sequence[Subject]],
        settings: InferenceSettings,
    ) -> MeanBranch:
        references = References.of(subjects)
        condition = adapter(encoders.encode_tokens(references.pictures))
        return MeanBranch(reference_strengths(subjects, references), [condition.keys_values])

    def predict(self, backbone: Backbone, generation: Generation, guidance: Guidance, step: DenoisingStep) -> Tensor:
        visual = guidance.conditions(step)
        eps_0, eps = predict_rows(backbone, step, generation.empty, generation.text, visual=visual)
        return guide(eps_0, eps, generation.guidance_scale)


def test_every_name_has_a_method_and_every_method_a_name() -> None:
    assert set(METHODS) == set(get_args(MethodName))


def test_a_third_method_is_trained_saved_loaded_and_used(
    monkeypatch: pytest.MonkeyPatch, sd_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(METHODS, "mean", MeanMethod())
    task = make_task(sd_folder, method="mean")
    module = task.module()
    with torch.no_grad():
        randomize_values(module)
    module(task.batch(0, 0, 1))["loss"].backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    task.export(module, tmp_path)
    assert method_of(load_adapter(tmp_path)).name == "mean"
    pipeline = RealCustomPipeline.from_pretrained(sd_folder, tmp_path, **ENCODERS)
    settings = InferenceSettings(steps=2, mask_steps=1)
    with_subject, without = (
        np.asarray(pipeline("a cat", picture, use_mask=False, settings=settings).images[0], dtype=np.int64)
        for picture in (subjects(1)[0], None)
    )
    assert np.abs(with_subject - without).max() > 3
