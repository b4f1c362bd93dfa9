"""RealCustom++ with the weights that its authors released: their inference in place of the paper's.

An adapter whose configuration says `inference: release` paints like this; the import of the weights writes it:

- the features of `model.adapters.release`, and those of a black picture in the unconditional rows, in the same masks;
- text conditions of `Backbone.released_text`: unprojected pooled states, time ids with the width first, and a negative
  prompt where none is given;
- masks from the cross-attention of all resolutions, without self-attention, resized bilinearly without antialiasing;
- `RELEASE_SETTINGS`: single-step DPM-Solver++ (or DDIM) from the last timestep, guidance 3.5, scope 0.25.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from diffusers import UNet2DConditionModel

from model.adapters.adapter import AdapterError
from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.release import (
    LOCATIONS,
    SHALLOW_LAYERS,
    TILES,
    ReleaseImageEncoders,
    check_encoders,
    read_encoder_configs,
)
from model.adapters.visual_attention import KeysValues, attached_processors
from model.backbone import Backbone, Family, read_family
from model.backbone_layout import check_backbone_files
from model.guidance.masks import Interpolation
from model.guidance.samplers import new_scheduler
from model.guidance.settings import RELEASE_SETTINGS, InferenceSettings, Sampler
from model.guidance.subjects import Subject
from model.methods.realcustom_plus_plus import RealCustomPlusBranch, RealCustomPlusPlus

#: Of the authors' repository github.com/bytedance/RealCustom (Apache License 2.0), prompts/validation_negative.txt.
NEGATIVE_PROMPT = (
    "(((naked))), deformed, bad anatomy, disfigured, poorly drawn face, mutation, mutated, extra limb, ugly, "
    "disgusting, poorly drawn hands, missing limb, floating limbs, disconnected limbs, malformed hands, blurry, "
    "((((mutated hands and fingers)))), watermark, watermarked, oversaturated, censored, distorted hands, amputation, "
    "missing hands, obese, doubled face, double hands"
)


@dataclass(frozen=True)
class ReleaseBranch(RealCustomPlusBranch):
    """Keys and values of the references, and of a black picture for the unconditional rows."""

    mask_interpolation: ClassVar[Interpolation] = "bilinear"
    black: KeysValues  # (1, n, C)

    @property
    def unconditional(self) -> KeysValues:
        """See `GenerationBranch.unconditional`."""
        return self.black


class RealCustomPlusPlusRelease(RealCustomPlusPlus):
    """The method of RealCustom++ as its authors use their released weights."""

    takes_auxiliary_branch = False  # its rows would come between those with subjects

    def own_settings(self, unet: UNet2DConditionModel) -> InferenceSettings:
        """See `Method.own_settings`; the masks come from all of the UNet's cross-attention."""
        downscales = [one.downscale for one in attached_processors(unet)]
        cross = [one.downscale for one in attached_processors(unet) if one.layer.endswith(".attn2")]
        relative = sorted({downscale // min(downscales) for downscale in cross})
        return replace(RELEASE_SETTINGS, mask_cross_downscales=relative or RELEASE_SETTINGS.mask_cross_downscales)

    def loading_options(
        self, config: Mapping[str, Any], backbone: str | Path, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See `Method.loading_options`; other encoders and views than the authors' are refused."""
        check_backbone_files(backbone)
        _check_family(read_family(backbone))
        names = given.get("image_encoders", LOCATIONS)
        configs = read_encoder_configs(names, backbone)
        size = configs[0].image_size if configs else 0
        own = {"shallow_layers": SHALLOW_LAYERS, "reference_size": size, "tiles": TILES}
        options = {**own, **given, "image_encoders": names}
        check_encoders(configs, options["shallow_layers"], options["reference_size"], options["tiles"])
        widths = [encoder.hidden_size for encoder in configs]
        if sum(widths) != config["image_width"]:
            raise AdapterError(
                f"the released weights need image features of width {config['image_width']}, but the image encoders "
                f"have widths {' + '.join(map(str, widths))} = {sum(widths)}."
            )
        return options

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        """See `Method.prepare_backbone`; it encodes prompts as the authors do."""
        _check_family(backbone.family)
        pooled, projected = backbone.text_encoders[-1].text_projection.weight.shape[::-1]
        if pooled != projected:
            raise AdapterError(
                f"released weights need the second text encoder's pooled states of width {pooled} before their "
                f"projection, but this base's UNet takes width {projected}."
            )
        return replace(backbone, released_text=True, negative_prompt=NEGATIVE_PROMPT)

    def prepare_encoders(self, encoders: ImageEncoders) -> ReleaseImageEncoders:
        """See `Method.prepare_encoders`."""
        return ReleaseImageEncoders.of(encoders)

    def new_scheduler(self, sampler: Sampler, config: Mapping[str, Any]) -> Any:
        """See `Method.new_scheduler`."""
        return new_scheduler(sampler, config, trailing=True)

    def generation_branch(
        self,
        adapter: RealCustomPlusAdapter,
        encoders: ReleaseImageEncoders,  # type: ignore[override]  # `prepare_encoders` made them
        subjects: Sequence[Sequence[Subject]],
        settings: InferenceSettings,
    ) -> ReleaseBranch:
        """Project the references and a black picture once for all steps."""
        branch = super().generation_branch(adapter, encoders, subjects, settings)
        return ReleaseBranch(branch.strengths, branch.pairs, encoders.black_keys_values(adapter))


def _check_family(family: Family) -> None:
    if family != "sdxl":
        raise AdapterError("released weights are for Stable Diffusion XL, but the base is another model.")
