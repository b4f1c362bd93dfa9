"""The RealCustom++ adapter: projector and visual keys/values of every cross-attention layer (Eqs. 4-9, 14)."""

import os
import re
from typing import Any

from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from model.image_encoder import ReferenceFeatures
from model.projector import Combination, CrossLayerCrossScaleProjector
from model.visual_attention import VisualAttentionProcessor, VisualCondition


class AdapterError(ValueError):
    """The adapter's file or the UNet does not fit."""


class RealCustomPlusAdapter(ModelMixin, ConfigMixin):
    """Everything that RealCustom++ trains. V starts at zero: an untrained adapter changes nothing.

    The base UNet is neither copied nor changed: `attach` replaces its attention processors, `detach` puts the former
    ones back, and while attached the UNet still computes the base model unless a condition is passed:

        adapter.attach(unet)
        condition = adapter(features)
        unet(latents, t, text, cross_attention_kwargs={"visual": condition})

    Args:
        layers: cross-attention layers of the UNet -> width C of their keys and values.
        image_width: c, width of the image encoders' features.
        token_width: c_t, the UNet's cross-attention width.
        head_width: of the projector's cross-attentions.
        cross_layer: see `CrossLayerCrossScaleProjector`, also for the ablations.
        cross_scale: likewise.
    """

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
        widths = {_key(layer): width for layer, width in layers.items()}
        self.to_k_vision = nn.ModuleDict({key: nn.Linear(token_width, width, False) for key, width in widths.items()})
        self.to_v_vision = nn.ModuleDict({key: nn.Linear(token_width, width, False) for key, width in widths.items()})
        for linear in self.to_v_vision.values():
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]

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

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike[str], **options: Any) -> "RealCustomPlusAdapter":
        """Load `config.json` and safetensors.

        Raises:
            AdapterError: weights are missing or unexpected (lists them).
            OSError: no such folder.
        """
        adapter, info = super().from_pretrained(
            folder_or_hub_id, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True, **options
        )
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or unexpected:
            raise AdapterError(f"adapter {folder_or_hub_id}: weights missing: {missing}, unexpected: {unexpected}.")
        return adapter

    def forward(self, features: ReferenceFeatures) -> VisualCondition:
        """The condition that the UNet's cross-attention takes as `visual`."""
        return VisualCondition(self.keys_values(self.projector(features)))

    def keys_values(self, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Tokens f_ci (B, n_i, c_t) -> layer -> K_i = W_Ki f_ci, V_i = W_Vi f_ci, each (B, n_i, C).

        They do not depend on the denoising step: compute them once a generation.
        """
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
        former = unet.attn_processors
        if all(isinstance(processor, VisualAttentionProcessor) for processor in former.values()):
            return
        processors = {}
        for name, original in former.items():
            layer = name.removesuffix(".processor")
            processors[name] = VisualAttentionProcessor(layer, layer_downscale(layer, levels), original)
        unet.set_attn_processor(processors)

    def detach(self, unet: UNet2DConditionModel) -> None:
        """Put back the processors that `attach` found. Without attached processors nothing changes."""
        unet.set_attn_processor(
            {name: getattr(processor, "original", processor) for name, processor in unet.attn_processors.items()}
        )

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
                f"the adapter does not fit this base model: its tokens have width {self.config['token_width']}, "
                f"the base's text states {unet.config.cross_attention_dim}."
            )


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
