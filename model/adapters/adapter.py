"""Adapters as processors of the attention layers; the one of RealCustom++: projector, keys and values (Eqs. 4-9, 14).

The one of RealCustom is in `model.adapters.realcustom`.
"""

import os
import re
from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from model.adapters.image_encoder import ReferenceFeatures
from model.adapters.model_card import model_card
from model.adapters.projector import Combination, CrossLayerCrossScaleProjector
from model.adapters.visual_attention import VisualAttentionProcessor, VisualCondition
from model.errors import ModelError


class AdapterError(ModelError):
    """The adapter's file or the UNet does not fit."""


class VisualAdapter(ModelMixin, ConfigMixin):
    """What RealCustom and RealCustom++ share: W_Ki and W_Vi of every cross-attention layer (RealCustom Eq. 4).

    V starts at zero: an untrained adapter changes nothing. The base UNet is neither copied nor changed: `attach`
    replaces its attention processors, `detach` puts the former ones back, and while attached the UNet still computes
    the base model unless a condition is passed:

        adapter.attach(unet)
        condition = adapter(...)
        unet(latents, t, text, cross_attention_kwargs={"visual": condition})

    A subclass names its method and paper, registers at least `layers` (cross-attention layers of the UNet -> width C of
    their keys and values) and `token_width` (c_t, the UNet's cross-attention width), and calls `_add_keys_values`.
    """

    method: ClassVar[str]
    paper: ClassVar[str]
    to_k_vision: nn.ModuleDict
    to_v_vision: nn.ModuleDict

    def _add_keys_values(self, layers: dict[str, int], width: int) -> None:
        """W_Ki and W_Vi for image tokens of a width."""
        widths = {_key(layer): to for layer, to in layers.items()}
        self.to_k_vision = nn.ModuleDict({key: nn.Linear(width, to, False) for key, to in widths.items()})
        values = {key: nn.Linear(width, to, False) for key, to in widths.items()}
        for linear in values.values():
            nn.init.zeros_(linear.weight)
        self.to_v_vision = nn.ModuleDict(values)

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike[str], **options: Any) -> Self:
        """Load `config.json` and safetensors; `options` are those of diffusers (`subfolder`, `revision`, ...).

        Raises:
            AdapterError: another kind of adapter; weights are missing or unexpected (lists them) or of other shapes.
            OSError: no such folder or hub id, or a file in it that cannot be read.
        """
        kind = cls.load_config(folder_or_hub_id, **options).get("_class_name")
        if kind != cls.__name__:
            raise AdapterError(f"{folder_or_hub_id} holds a {kind}, not a {cls.__name__}.")
        try:
            adapter, info = super().from_pretrained(
                folder_or_hub_id, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True, **options
            )
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise AdapterError(f"adapter {folder_or_hub_id}: the weights do not fit its config.json: {why}") from error
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or unexpected:
            raise AdapterError(f"adapter {folder_or_hub_id}: weights missing: {missing}, unexpected: {unexpected}.")
        return adapter

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write `config.json`, safetensors and a model card, README.md; `options` are those of diffusers.

        To publish the adapter upload the folder: with `push_to_hub` diffusers would send a card of its own.
        """
        super().save_pretrained(save_directory, **options)
        card = model_card(type(self), self.method, self.paper, self.config, self.num_parameters())
        (Path(save_directory) / "README.md").write_text(card, encoding="utf-8")

    def keys_values(self, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Image tokens f_ci (B, n_i, width) -> layer -> K_i = W_Ki f_ci, V_i = W_Vi f_ci, each (B, n_i, C)."""
        return {
            layer: (self.to_k_vision[_key(layer)](tokens), self.to_v_vision[_key(layer)](tokens))
            for layer in self.config["layers"]
        }

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Put visual attention processors into the UNet. Attaching to a UNet that has them already changes nothing.

        Raises:
            AdapterError: the UNet's cross-attention has other layers or widths than the adapter was made for.
        """
        self.check_fits(unet)
        levels = len(unet.config.block_out_channels)
        processors = unet.attn_processors
        for name, original in processors.items():
            if not isinstance(original, VisualAttentionProcessor):
                layer = name.removesuffix(".processor")
                processors[name] = VisualAttentionProcessor(layer, layer_downscale(layer, levels), original)
        unet.set_attn_processor(processors)

    def detach(self, unet: UNet2DConditionModel) -> None:
        """Put back the processors that `attach` found. Without attached processors nothing changes."""
        processors = unet.attn_processors
        for name, processor in processors.items():
            if isinstance(processor, VisualAttentionProcessor):
                processors[name] = processor.original
        unet.set_attn_processor(processors)

    def check_fits(self, unet: UNet2DConditionModel) -> None:
        """Raise AdapterError if the UNet has another shape than the adapter was made for."""
        mine, theirs = dict(self.config["layers"]), cross_attention_widths(unet)
        for layer in sorted(mine.keys() | theirs.keys()):
            if mine.get(layer) != theirs.get(layer):
                raise AdapterError(
                    f"the adapter does not fit this base model: cross-attention {layer} has width "
                    f"{theirs.get(layer, 'none')} in the base and {mine.get(layer, 'none')} in the adapter."
                )
        if self.config["token_width"] != unet.config.cross_attention_dim:
            raise AdapterError(
                "the adapter does not fit this base model: it was made for text states of width "
                f"{self.config['token_width']}, the base's have {unet.config.cross_attention_dim}."
            )


class RealCustomPlusAdapter(VisualAdapter):
    """Everything that RealCustom++ trains: the projector and the visual keys and values.

    Args:
        layers: cross-attention layers of the UNet -> width C of their keys and values.
        image_width: c, width of the image encoders' features.
        token_width: c_t, the UNet's cross-attention width.
        head_width: of the projector's cross-attentions.
        cross_layer: see `CrossLayerCrossScaleProjector`, also for the ablations.
        cross_scale: likewise.
    """

    method = "RealCustom++"
    paper = "RealCustom++: Representing Images as Real Textual Word for Real-Time Customization"

    @register_to_config
    def __init__(
        self,
        layers: dict[str, int],
        image_width: int,
        token_width: int,
        head_width: int = 64,
        cross_layer: Combination | None = "concat",
        cross_scale: Combination | None = "add",
    ) -> None:
        super().__init__()
        self.projector = CrossLayerCrossScaleProjector(image_width, token_width, head_width, cross_layer, cross_scale)
        self._add_keys_values(layers, token_width)

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        image_width: int,
        head_width: int = 64,
        cross_layer: Combination | None = "concat",
        cross_scale: Combination | None = "add",
    ) -> "RealCustomPlusAdapter":
        """A fresh adapter with the shapes of a base UNet; `image_width` is `ImageEncoders.width`."""
        layers, token_width = cross_attention_widths(unet), unet.config.cross_attention_dim
        return cls(layers, image_width, token_width, head_width, cross_layer, cross_scale)

    def forward(self, features: ReferenceFeatures) -> VisualCondition:
        """The condition that the UNet's cross-attention takes as `visual`.

        It does not depend on the denoising step: make it once a generation.
        """
        return VisualCondition(self.keys_values(self.projector(features)))


def cross_attention_widths(unet: UNet2DConditionModel) -> dict[str, int]:
    """Cross-attention layers of a UNet -> width of their keys and values.

    Raises:
        AdapterError: attention of a kind that Stable Diffusion 1.5 and XL do not use.
    """
    widths = {}
    for name, module in unet.named_modules():
        if not isinstance(module, Attention):
            continue
        if module.group_norm is not None or module.residual_connection or module.norm_q is not None:
            raise AdapterError(f"attention {name} of this UNet is not of Stable Diffusion's kind.")
        if name.endswith(".attn2"):
            widths[name] = module.to_k.out_features
    return widths


def layer_downscale(layer: str, levels: int) -> int:
    """How much smaller than the latent a layer's grid is.

    Args:
        layer: name in a diffusers UNet.
        levels: number of down blocks; every one but the last halves the grid.
    """
    block = re.match(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?", layer)
    if block is None:
        raise AdapterError(f"attention {layer} is in no block of a Stable Diffusion UNet.")
    if block[1] == "mid_block":
        return 2 ** (levels - 1)
    index = int(block[2])
    return 2 ** (index if block[1] == "down_blocks" else levels - 1 - index)


def _key(layer: str) -> str:
    """A ModuleDict takes no dots."""
    return layer.replace(".", "_")
