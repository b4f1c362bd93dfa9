"""RealCustom++: references from the plan, and one guidance scale for text and subject (Secs. III-C to III-E).

The guidance branch's prediction is not used, so its pass, of B rows, ends at the last layer that makes the mask. The
unconditional rows and the generation branch share a batch.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.visual_attention import KeysValues, VisualCondition
from model.backbone import Backbone
from model.guidance.denoising import Generation, Guidance, guide, predict_guided_rows
from model.guidance.generation_branch import (
    DenoisingStep,
    GenerationBranch,
    SubjectMasks,
    reference_strengths,
)
from model.guidance.guidance_branch import run_guidance_branch
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import References, Subject
from model.methods.method import Method


@dataclass(frozen=True)
class RealCustomPlusBranch(GenerationBranch):
    """Keys and values that are the same at every step."""

    pairs: list[KeysValues]  # of each of the K references

    @property
    def keys(self) -> int:
        """See `GenerationBranch.keys`."""
        return max(key.shape[1] for key, _ in self.pairs[0].values())

    def keys_values(self, step: DenoisingStep, masks: SubjectMasks | None) -> list[KeysValues]:
        """Keys and values of each of the K references."""
        return self.pairs


class RealCustomPlusPlus(Method[RealCustomPlusAdapter]):
    """The method of RealCustom++."""

    name = "realcustom++"
    takes_auxiliary_branch = True  # the generation branch is DCI's concept branch
    adapter_class = RealCustomPlusAdapter
    adapter_options = ("cross_layer", "cross_scale")

    def new_adapter(self, unet: UNet2DConditionModel, image_width: int, **options: Any) -> RealCustomPlusAdapter:
        """See `RealCustomPlusAdapter.from_unet`."""
        return RealCustomPlusAdapter.from_unet(unet, image_width, **options)

    def training_condition(
        self,
        adapter: RealCustomPlusAdapter,
        encoders: ImageEncoders,
        batch: Mapping[str, Tensor],
        noisy: Tensor,
        alpha_bar: Tensor,
    ) -> VisualCondition:
        """The condition of the references, or of a black picture where it is dropped (Sec. III-C)."""
        keep = batch["keep_image"]
        tiled = adapter.config["cross_scale"] is not None
        condition: VisualCondition = adapter(encoders.features_or_black(batch["reference"], keep, tiled=tiled))
        return condition.repeat_interleave(len(noisy) // len(keep))

    def generation_branch(
        self,
        adapter: RealCustomPlusAdapter,
        encoders: ImageEncoders,
        subjects: Sequence[Sequence[Subject]],
        settings: InferenceSettings,
    ) -> RealCustomPlusBranch:
        """Project the references once for all steps."""
        references = References.of(subjects)
        strengths = reference_strengths(subjects, references).to(adapter.device)
        features = encoders.encode(references.pictures).to(adapter.device, adapter.dtype)
        distinct = adapter(features).keys_values
        return RealCustomPlusBranch(
            strengths,
            [
                {layer: (key[rows], value[rows]) for layer, (key, value) in distinct.items()}
                for rows in torch.tensor(references.of_prompt).T
            ],
        )

    def predict(self, backbone: Backbone, generation: Generation, guidance: Guidance, step: DenoisingStep) -> Tensor:
        """RealCustom++ Eq. 15."""
        now = time.perf_counter()
        guidance.extrapolate_masks(step.number)
        if guidance.is_guided(step.number):
            recorder = guidance.recorder(ends_pass=True)
            run_guidance_branch(backbone, step.latents, step.timestep, generation.text, recorder)
            guidance.find_masks(recorder.maps())
        now = generation.clock("guidance", now)
        visual = guidance.conditions(step)
        unconditional, conditional = predict_guided_rows(backbone, generation, step, visual=visual)
        generation.clock("generation", now)
        return guide(unconditional, conditional, generation.guidance_scale)
