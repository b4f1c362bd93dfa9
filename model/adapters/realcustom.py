"""The RealCustom adapter: adaptive scoring module, and visual keys/values of every cross-attention layer (Eqs. 4-10).

Unlike RealCustom++'s, its condition depends on the text, the latents and the step, and is computed at every step.
"""

from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from model.adapters.adapter import VisualAdapter, cross_attention_widths
from model.adapters.adaptive_scoring import AdaptiveScoringModule, ScoreFusion
from model.adapters.visual_attention import VisualCondition


class RealCustomAdapter(VisualAdapter):
    """What RealCustom trains: the adaptive scoring module and the visual keys and values.

        adapter.attach(unet)
        condition = adapter(image_tokens, text_states, latents * mask, alpha_bar)  # at every step
        unet(latents, t, text_states, cross_attention_kwargs={"visual": condition})

    The image tokens are the patch tokens of a frozen CLIP image encoder (`ImageEncoders.tokens`); W_Ki and W_Vi read
    them directly.

    Args:
        layers: cross-attention layers of the UNet -> width C of their keys and values.
        image_width: c_i, width of the image tokens.
        token_width: c_t, the UNet's cross-attention width.
        latent_channels: c.
        score_fusion: "scheduled" (Eq. 8); "textual", "visual", "mean" or None (no scoring module, all image tokens)
            are the rows of Table 3.
    """

    method_name = "RealCustom"
    paper = "RealCustom: Narrowing Real Text Word for Real-Time Open-Domain Text-to-Image Customization"

    @register_to_config
    def __init__(
        self,
        layers: dict[str, int],
        image_width: int,
        token_width: int,
        latent_channels: int = 4,
        score_fusion: ScoreFusion | None = "scheduled",
    ) -> None:
        super().__init__()
        self.scoring = (
            None
            if score_fusion is None
            else AdaptiveScoringModule(token_width, latent_channels, image_width, score_fusion)
        )
        self._add_keys_values(layers, image_width)

    @classmethod
    def from_unet(
        cls, unet: UNet2DConditionModel, image_width: int, score_fusion: ScoreFusion | None = "scheduled"
    ) -> "RealCustomAdapter":
        """A new adapter with the shapes of a base UNet; `image_width` is `ImageEncoders.width`."""
        shapes = image_width, unet.config.cross_attention_dim, unet.config.in_channels
        return cls(cross_attention_widths(unet), *shapes, score_fusion)

    def forward(
        self, image: Tensor, text: Tensor, latents: Tensor, alpha_bar: Tensor, gamma_num: float = 0.8
    ) -> VisualCondition:
        """The condition that the UNet's cross-attention takes as `visual`, at one step.

        Args:
            image: f_ci (B, n_i, c_i)
            text: f_ct (B, n_t, c_t)
            latents: z_t (B, c, h, w); at inference z_t times the mask, so that the scores depend on the subject's
                region alone
            alpha_bar: the scheduler's `alphas_cumprod` at each row's timestep (B,)
            gamma_num: share of the image tokens to keep; in training `sample_gamma_num`. Without a scoring module all
                are kept.

        Raises:
            GenerationError: gamma_num lies outside (0, 1] or keeps no token.
        """
        if self.scoring is not None:
            image = self.scoring(image, text, latents, alpha_bar, gamma_num)
        return VisualCondition(self.keys_values(image))
