"""What RealCustom++'s authors feed to the weights that they released: the views of the reference, and their features.

It differs from this project's in all of this:

    reference     stretched to 768 x 768 pixels, bilinear without antialiasing, in 8 bits   (ours: its central square)
    low view      resized bilinearly with aligned corners, in 8 bits: nearly every second pixel (with antialiasing)
    high views    the four pictures that its pixels make when two are skipped each way      (its four quarters)
    deep features the outputs of blocks 25 (SigLIP) and 22 (DINOv2), without the final norm (the last hidden states)

Legend of shapes: as in `model.adapters.image_encoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig

from model.adapters.image_encoder import ImageEncoders, VisionTower, located
from model.adapters.vision_models import ImageEncoderError
from model.adapters.visual_attention import KeysValues
from model.pictures.tensors import to_tensor
from model.pretrained import split_revision

#: How an adapter is fed and guided: as this project trains it, or as the authors use their released weights.
Inference = Literal["paper", "release"]
#: The encoders in their order: model types of transformers, the block of the deep features, those of the shallow ones.
ENCODERS = (
    ("SigLIP", ("siglip", "siglip_vision_model"), 25, (7, 13, 19)),
    ("DINOv2 with registers", ("dinov2_with_registers",), 22, (4, 10, 16)),
)
LOCATIONS = ("google/siglip-so400m-patch14-384", "facebook/dinov2-with-registers-large")
SHALLOW_LAYERS = tuple(shallow for *_, shallow in ENCODERS)
TILES = 2
_ADVICE = f"set backbone.image_encoders to [{', '.join(LOCATIONS)}]"


class ReleaseImageEncoders(ImageEncoders):
    """The encoders of the released weights; see the module."""

    _of_black: tuple[Any, Any, KeysValues] | None = None  # an adapter, its device and dtype, what it makes of black

    @classmethod
    def of(cls, encoders: ImageEncoders) -> ReleaseImageEncoders:
        """The same models, whose features are those of the release.

        Raises:
            ImageEncoderError: they are not those that the weights were trained with, or see other views.
        """
        if isinstance(encoders, ReleaseImageEncoders):
            return encoders
        towers = [tower for tower in encoders.towers if isinstance(tower, VisionTower)]
        configs = [tower.model.config for tower in towers]
        check_encoders(configs, [tower.shallow_layers for tower in towers], encoders.reference_size, encoders.tiles)
        deep = [
            VisionTower(
                tower.model, tower.mean.flatten().tolist(), tower.std.flatten().tolist(), tower.shallow_layers, block
            )
            for tower, (_, _, block, _) in zip(towers, ENCODERS, strict=True)
        ]
        for tower, before in zip(deep, towers, strict=True):
            tower.to(before.mean.device, before.mean.dtype)
        return cls(deep, encoders.reference_size, encoders.tiles)

    def _low_view(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, S, S), resized with aligned corners: within a pixel of every `tiles`-th."""
        size = (self.reference_size, self.reference_size)
        return _in_8_bits(F.interpolate(pictures, size, mode="bilinear", align_corners=True))

    def _high_views(self, pictures: Tensor) -> Tensor:
        return strided_views(pictures, self.tiles)

    def black_keys_values(self, adapter: Any) -> KeysValues:
        """Keys and values (1, n, C) of a black picture, for an adapter whose weights stay as they are."""
        place = adapter.device, adapter.dtype
        if self._of_black is not None and self._of_black[:2] == (adapter, place):
            return self._of_black[2]
        made: KeysValues = adapter(self.black(1).to(*place)).keys_values
        self._of_black = adapter, place, made
        return made

    def _prepare(self, picture: Image.Image) -> Tensor:
        return stretched(picture, self.reference_size * self.tiles).to(self.device)


def stretched(picture: Image.Image, side: int) -> Tensor:
    """A picture of any size, stretched to a square without antialiasing: (3, side, side), multiples of 1/255."""
    pixels = to_tensor(picture.convert("RGB"))[None]
    resized = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)[0]
    return _in_8_bits(resized)


def _in_8_bits(pictures: Tensor) -> Tensor:
    """Multiples of 1/255, cut off, not rounded: so do the authors when they make pictures of tensors."""
    return (pictures * 255).byte().float() / 255


def strided_views(pictures: Tensor, stride: int) -> Tensor:
    """Pictures (B, 3, S, S) -> views of every `stride`-th pixel, one for each of the first: (B * T, 3, s, s)."""
    views = [pictures[:, :, row::stride, column::stride] for row in range(stride) for column in range(stride)]
    return torch.stack(views, dim=1).flatten(0, 1)


def check_encoders(
    configs: Sequence[Any], shallow_layers: Sequence[Sequence[int]], reference_size: int, tiles: int
) -> None:
    """Refuse image encoders and settings that released weights were not trained with.

    Args:
        configs: of transformers, of each encoder.
        shallow_layers: of each encoder.
        reference_size: see `ImageEncoders`.
        tiles: see `ImageEncoders`.

    Raises:
        ImageEncoderError: another kind or number of encoders, too few blocks, or other views.
    """
    names = " and ".join(name for name, *_ in ENCODERS)
    if len(configs) != len(ENCODERS):
        raise ImageEncoderError(f"released weights need {names}, but there are {len(configs)} encoders; {_ADVICE}.")
    for config, (name, kinds, block, _) in zip(configs, ENCODERS, strict=True):
        if config.model_type not in kinds:
            raise ImageEncoderError(
                f"released weights need {names}, in this order, but an encoder is {config.model_type!r}; {_ADVICE}."
            )
        if config.num_hidden_layers <= block:
            raise ImageEncoderError(
                f"released weights need the output of {name}'s block {block}, but this one has "
                f"{config.num_hidden_layers} blocks; {_ADVICE}."
            )
    given = tuple(map(tuple, shallow_layers))
    if given != SHALLOW_LAYERS:
        needed = [list(layers) for layers in SHALLOW_LAYERS]
        raise ImageEncoderError(
            f"shallow_layers {[list(layers) for layers in given]}: released weights need {needed}; "
            f"set backbone.shallow_layers={needed}."
        )
    if tiles != TILES:
        raise ImageEncoderError(
            f"tiles {tiles}: released weights need {TILES}; set backbone.high_resolution_tiles={TILES}."
        )
    if reference_size != configs[0].image_size:
        raise ImageEncoderError(
            f"reference_size {reference_size}: released weights need the {configs[0].image_size} pixels of their "
            f"SigLIP; set backbone.reference_size={configs[0].image_size}."
        )


def read_encoder_configs(image_encoders: Sequence[str], backbone_folder: str | Path | None) -> list[Any]:
    """The configurations of image encoders, of their vision towers, before the weights are loaded.

    Raises:
        ImageEncoderError: one is missing.
    """
    configs = []
    for name in image_encoders:
        location = located(name, backbone_folder)
        hub_id, revision = split_revision(location)
        try:
            config = AutoConfig.from_pretrained(hub_id, **revision)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ImageEncoderError(f"image encoder {location!r} cannot be loaded: {reason}") from error
        configs.append(getattr(config, "vision_config", config))
    return configs
