"""The RealCustom++ adapter: the projector, and visual keys and values of every cross-attention layer (Eqs. 4-9, 14)."""

from typing import Any, get_args

from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config

from model.adapters.adapter import AdapterError, VisualAdapter, cross_attention_widths
from model.adapters.image_encoder import ReferenceFeatures
from model.adapters.projector import Combination, CrossLayerCrossScaleProjector
from model.adapters.release import Inference
from model.adapters.visual_attention import VisualCondition


class RealCustomPlusAdapter(VisualAdapter):
    """What RealCustom++ trains: the projector and the visual keys and values.

    Args:
        layers: cross-attention layers of the UNet -> width C of their keys and values.
        image_width: c, width of the image encoders' features.
        token_width: c_t, the UNet's cross-attention width.
        head_width: of the projector's cross-attentions.
        cross_layer: see `CrossLayerCrossScaleProjector`.
        cross_scale: see `CrossLayerCrossScaleProjector`.
        inference: how pictures are painted with it: as in the paper, or as the authors do with the weights that they
            released (`model.methods.release`); an import of these sets it.
    """

    method_name = "RealCustom++"
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
        inference: Inference = "paper",
    ) -> None:
        super().__init__()
        if inference not in get_args(Inference):
            raise AdapterError(f"inference is {inference!r}; it must be one of {', '.join(get_args(Inference))}.")
        self.projector = CrossLayerCrossScaleProjector(image_width, token_width, head_width, cross_layer, cross_scale)
        self._add_keys_values(layers, token_width)

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, image_width: int, **options: Any) -> "RealCustomPlusAdapter":
        """A new adapter with the shapes of a base UNet.

        Args:
            unet: of the base model.
            image_width: `ImageEncoders.width`.
            options: `head_width`, `cross_layer` and `cross_scale`.
        """
        return cls(cross_attention_widths(unet), image_width, unet.config.cross_attention_dim, **options)

    def forward(self, features: ReferenceFeatures) -> VisualCondition:
        """The condition that the UNet's cross-attention takes as `visual`.

        It is the same at every denoising step, so one call for a generation is enough.
        """
        return VisualCondition(self.keys_values(self.projector(features)))
