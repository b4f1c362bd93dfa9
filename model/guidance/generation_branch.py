"""The generation branch: what the references add, and where (RealCustom Sec. 3.3, RealCustom++ Secs. III-D2, III-E).

What RealCustom++ sees in a reference is the same at every step. RealCustom looks anew at every step: its scoring module
weighs the image tokens by the text and by what has been painted so far inside the subject's mask.

Legend of shapes: as in `model.guidance.masks`; K references of a picture, C the width of a layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.adapters.adapter import RealCustomPlusAdapter, VisualAdapter
from model.adapters.adaptive_scoring import token_count
from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.visual_attention import Region, VisualCondition
from model.guidance.masks import Grid, layer_regions, resize
from model.guidance.subjects import GenerationError, References, Subject

KeysValues = dict[str, tuple[Tensor, Tensor]]  # layer -> K_i, V_i, each (B, n, C)


@dataclass(frozen=True)
class DenoisingStep:
    """What a step starts from."""

    number: int
    timestep: Tensor  # ()
    latents: Tensor  # z_t (B, 4, h, w), as the UNet takes them
    alpha_bar: Tensor  # (B,), of the timestep
    text: Tensor  # f_ct (B, n_t, c_t)


@dataclass(frozen=True)
class PlacedMasks:
    """The masks of a picture's subjects, and where they let each reference act."""

    masks: Tensor  # M_hat (B, N, S)
    grid: Grid  # G, G'
    regions: list[dict[int, Region]]  # of each of the K references


@dataclass(frozen=True)
class GenerationBranch(ABC):
    """The references of a batch of pictures, encoded once for all steps."""

    strengths: Tensor  # (B, S, K), of each subject's mask for each reference; 0 where it shows another

    @abstractmethod
    def keys_values(self, step: DenoisingStep, placed: PlacedMasks | None) -> list[KeysValues]:
        """Of each of the K references, at a step."""

    def conditions(self, step: DenoisingStep, placed: PlacedMasks | None) -> list[VisualCondition]:
        """What the UNet's cross-attention takes as `visual` at a step; without masks every reference acts everywhere.

        RealCustom++ Eq. 17 sums over the subjects. The sum is taken over their masks where they share a reference,
        which is the same and needs its attention once.
        """
        pairs = self.keys_values(step, placed)
        if placed is not None:
            return [VisualCondition(*of_one) for of_one in zip(pairs, placed.regions, strict=True)]
        totals = self.strengths.sum(1).unbind(-1)  # K times (B,)
        return [VisualCondition(pair, scale=total[:, None, None]) for pair, total in zip(pairs, totals, strict=True)]

    def place(self, masks: Tensor, latent: Grid, grid: Grid, downscales: Sequence[int]) -> PlacedMasks:
        """Where each reference acts: inside the masks of its subjects, times their strengths.

        Args:
            masks: M_hat (B, N, S).
            latent: size of the latent.
            grid: G, G' of the masks.
            downscales: of all cross-attention layers.
        """
        weights = (masks @ self.strengths.to(masks.dtype)).transpose(1, 2).unflatten(2, grid)  # (B, K, G, G')
        return PlacedMasks(masks, grid, [layer_regions(mask, latent, downscales) for mask in weights.unbind(1)])


@dataclass(frozen=True)
class RealCustomPlusBranch(GenerationBranch):
    """RealCustom++: keys and values do not depend on the step."""

    once: list[KeysValues]  # of each of the K references

    def keys_values(self, step: DenoisingStep, placed: PlacedMasks | None) -> list[KeysValues]:
        """Of each of the K references."""
        return self.once


@dataclass(frozen=True)
class RealCustomBranch(GenerationBranch):
    """RealCustom's TI2I branch: the image tokens are scored at every step, by z_t M_hat (Sec. 3.3)."""

    adapter: RealCustomAdapter
    tokens: list[Tensor]  # f_ci of each of the K references, (B, n_i, c_i)
    gamma_num: float

    def keys_values(self, step: DenoisingStep, placed: PlacedMasks | None) -> list[KeysValues]:
        """Of each of the K references, at a step."""
        dtype = self.adapter.dtype
        painted = [step.latents.to(dtype)] * len(self.tokens)
        if placed is not None:
            painted = [latents * mask for latents, mask in zip(painted, self._inside(step, placed), strict=True)]
        return [
            self.adapter(tokens, step.text.to(dtype), latents, step.alpha_bar, self.gamma_num).keys_values
            for tokens, latents in zip(self.tokens, painted, strict=True)
        ]

    def _inside(self, step: DenoisingStep, placed: PlacedMasks) -> Sequence[Tensor]:
        """For each reference the masks of its subjects as one, on the latent's grid: K times (B, 1, h, w)."""
        shown = (self.strengths > 0).to(placed.masks.dtype)
        masks = (placed.masks[..., None] * shown[:, None]).amax(2)  # (B, N, K)
        latent = (step.latents.shape[2], step.latents.shape[3])
        spread = resize(masks, placed.grid, latent).transpose(1, 2).unflatten(2, latent)
        return spread.to(self.adapter.dtype).split(1, dim=1)


def generation_branch(
    adapter: VisualAdapter, encoders: ImageEncoders, subjects: Sequence[Sequence[Subject]], gamma_num: float
) -> GenerationBranch:
    """Encode the references of each picture's subjects, every distinct picture once.

    Args:
        adapter: of either method.
        encoders: that it was trained with.
        subjects: of each picture, with their strengths.
        gamma_num: share of the image tokens that RealCustom keeps.

    Raises:
        GenerationError: gamma_num keeps no image token, or more than all.
    """
    references = References.of(subjects)
    rows = torch.tensor(references.of_prompt).T  # (K, B)
    strengths = torch.zeros(len(subjects), max(len(of_prompt) for of_prompt in subjects), len(rows))
    for row, of_prompt, shown in zip(strengths, subjects, references.of_subject, strict=True):
        for place, (subject, reference) in enumerate(zip(of_prompt, shown, strict=True)):
            assert subject.scale is not None
            row[place, reference] = subject.scale
    strengths = strengths.to(adapter.device)
    if isinstance(adapter, RealCustomAdapter):
        try:
            token_count(gamma_num, encoders.patches)
        except ValueError as error:
            raise GenerationError(str(error)) from error
        tokens = encoders.encode_tokens(references.pictures).to(adapter.device, adapter.dtype)
        return RealCustomBranch(strengths, adapter, [tokens[of] for of in rows], gamma_num)
    assert isinstance(adapter, RealCustomPlusAdapter)
    once = adapter(encoders.encode(references.pictures).to(adapter.device, adapter.dtype)).keys_values
    each = [{layer: (key[of], value[of]) for layer, (key, value) in once.items()} for of in rows]
    return RealCustomPlusBranch(strengths, each)
