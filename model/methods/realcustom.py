"""RealCustom: the reference is the target itself, and text and subject have guidance scales of their own (Sec. 3).

The T2I branch's prediction is used (Eq. 13): its attention is recorded in the same pass, in one batch with the
unconditional rows. The TI2I branch follows, of B rows; in a step that keeps the last masks, all three share a batch.

Legend of shapes: as in `model.guidance.generation_branch`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from model.adapters.adaptive_scoring import token_count
from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.visual_attention import KeysValues, VisualCondition
from model.backbone import Backbone
from model.guidance.denoising import Generation, Guidance, Scale, guide, predict_rows
from model.guidance.generation_branch import (
    DenoisingStep,
    GenerationBranch,
    SubjectMasks,
    reference_strengths,
)
from model.guidance.masks import resize
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import References, Subject
from model.methods.method import Method


def guide_by_text_and_image(
    unconditional: Tensor, text: Tensor, text_and_image: Tensor, text_scale: Scale, image_scale: Scale
) -> Tensor:
    """eps_0 + w_t (eps_T - eps_0) + w_i (eps_TI - eps_T) (RealCustom Eq. 13); with w_t = w_i it is RealCustom++'s."""
    return guide(unconditional, text, text_scale) + image_scale * (text_and_image - text)


@dataclass(frozen=True)
class RealCustomBranch(GenerationBranch):
    """The TI2I branch: the image tokens are scored at every step, by z_t M_hat (Sec. 3.3)."""

    adapter: RealCustomAdapter
    tokens: list[Tensor]  # f_ci of each of the K references, (B, n_i, c_i)
    gamma_num: float

    @property
    def keys(self) -> int:
        """See `GenerationBranch.keys`."""
        return token_count(self.gamma_num, self.tokens[0].shape[1])

    def keys_values(self, step: DenoisingStep, masks: SubjectMasks | None) -> list[KeysValues]:
        """Keys and values of each of the K references at a step."""
        dtype = self.adapter.dtype
        latents = [step.latents.to(dtype)] * len(self.tokens)
        if masks is not None:
            latents = [own * mask for own, mask in zip(latents, self._latent_masks(step, masks), strict=True)]
        return [
            self.adapter(tokens, step.text.to(dtype), own, step.alpha_bar, self.gamma_num).keys_values
            for tokens, own in zip(self.tokens, latents, strict=True)
        ]

    def _latent_masks(self, step: DenoisingStep, masks: SubjectMasks) -> Sequence[Tensor]:
        """For each reference the union of its subjects' masks, on the latent's grid: K times (B, 1, h, w)."""
        belongs = (self.strengths > 0).to(masks.masks.dtype)
        union = (masks.masks[..., None] * belongs[:, None]).amax(2)  # (B, N, K)
        latent = (step.latents.shape[2], step.latents.shape[3])
        resized = resize(union, masks.grid, latent).transpose(1, 2).unflatten(2, latent)
        return resized.to(self.adapter.dtype).split(1, dim=1)


class RealCustom(Method[RealCustomAdapter]):
    """The method of RealCustom."""

    name = "realcustom"
    adapter_class = RealCustomAdapter
    adapter_options = ("score_fusion",)
    reference_is_target = True  # Sec. 3.2
    guides_by_text_branch = True  # Eq. 13

    def new_adapter(self, unet: UNet2DConditionModel, image_width: int, **options: Any) -> RealCustomAdapter:
        """See `RealCustomAdapter.from_unet`."""
        return RealCustomAdapter.from_unet(unet, image_width, **options)

    def training_condition(
        self,
        adapter: RealCustomAdapter,
        encoders: ImageEncoders,
        batch: Mapping[str, Tensor],
        noisy: Tensor,
        alpha_bar: Tensor,
    ) -> VisualCondition:
        """The condition of the scored image tokens, or of those of a black picture where it is dropped (Sec. 3.2)."""
        keep = batch["keep_image"]
        tokens = encoders.tokens_or_black(batch["reference"], keep)
        tokens = tokens.repeat_interleave(len(noisy) // len(keep), dim=0)
        gamma_num = batch["gamma_num"].item()
        condition: VisualCondition = adapter(tokens, batch["hidden"], noisy, alpha_bar, gamma_num)
        return condition

    def generation_branch(
        self,
        adapter: RealCustomAdapter,
        encoders: ImageEncoders,
        subjects: Sequence[Sequence[Subject]],
        settings: InferenceSettings,
    ) -> RealCustomBranch:
        """Encode the references' image tokens.

        Raises:
            GenerationError: gamma_num keeps no image token, or more than all.
        """
        references = References.of(subjects)
        strengths = reference_strengths(subjects, references).to(adapter.device)
        token_count(settings.gamma_num, encoders.patches)
        tokens = encoders.encode_tokens(references.pictures).to(adapter.device, adapter.dtype)
        rows = torch.tensor(references.of_prompt).T  # (K, B)
        return RealCustomBranch(strengths, adapter, [tokens[of_slot] for of_slot in rows], settings.gamma_num)

    def predict(self, backbone: Backbone, generation: Generation, guidance: Guidance, step: DenoisingStep) -> Tensor:
        """RealCustom Eq. 13."""
        now = time.perf_counter()
        guidance.extrapolate_masks(step.number)
        text, empty = generation.text, generation.empty
        if guidance.is_guided(step.number):
            recorder = guidance.recorder(ends_pass=False)
            eps_0, eps_t = predict_rows(backbone, step, empty, text, recorder=recorder)
            guidance.find_masks(recorder.maps())
            now = generation.clock("guidance", now)
            (eps_ti,) = predict_rows(backbone, step, text, visual=guidance.conditions(step))
        else:
            visual = guidance.conditions(step)
            eps_0, eps_t, eps_ti = predict_rows(backbone, step, empty, text, text, visual=visual)
        generation.clock("generation", now)
        scales = generation.guidance_scale, generation.image_guidance_scale
        return guide_by_text_and_image(eps_0, eps_t, eps_ti, *scales)

    def conditional_rows(
        self, text: Tensor, visual: Tensor, guidance_scale: float, image_guidance_scale: float
    ) -> Tensor:
        """RealCustom Eq. 13 solved for the rows that classifier-free guidance at omega_t takes."""
        return text + image_guidance_scale / guidance_scale * (visual - text)
