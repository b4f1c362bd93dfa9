"""Cross-layer cross-scale projector (RealCustom++ Sec. III-C1, Eqs. 5-9).

Legend of shapes: B batch, n patches of the low-resolution reference, L shallow levels, T high-resolution tiles, c width
of the image features, c_t width of the text states (the UNet's cross-attention width).
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from model.image_encoder import ReferenceFeatures


class MinAttention(nn.Module):
    """Multi-head cross-attention: LayerNorm on both inputs, no biases, no output projection (authors' code).

    Args:
        width: c, of both inputs and of the output.
        head_width: 64 in the authors' code; a narrower width becomes one head.
    """

    def __init__(self, width: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = max(1, width // head_width)
        if width % self.heads:
            raise ValueError(f"image features of width {width} do not divide into heads of width {head_width}")
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """`queries` (B, n, c), `context` (B, m, c) -> (B, n, c)."""
        queries, context = self.norm1(queries), self.norm2(context)
        query, key, value = (
            tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tensor in (self.to_q(queries), self.to_k(context), self.to_v(context))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _mlp(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 4 * width),
        nn.GELU(),
        nn.Linear(4 * width, out),
        nn.GELU(),
        nn.Linear(out, out),
        nn.LayerNorm(out),
    )


class CrossLayerCrossScaleProjector(ModelMixin, ConfigMixin):
    """Image features of the reference -> visual condition f_ci in the space of the text states (Eqs. 5-9).

    Shallow layers give the subject's structure, the high-resolution tiles its details. The MLP of the deep features is
    one linear layer, as in the authors' code.

    Args:
        image_width: c, width of the encoders' features (all encoders concatenated).
        token_width: c_t.
        head_width: of the cross-attentions.
    """

    @register_to_config
    def __init__(self, image_width: int, token_width: int, head_width: int = 64) -> None:
        super().__init__()
        self.shallow_attention = MinAttention(image_width, head_width)
        self.shallow_mlp = _mlp(image_width, token_width)
        self.high_attention = MinAttention(image_width, head_width)
        self.high_mlp = _mlp(image_width, token_width)
        self.deep_mlp = nn.Linear(image_width, token_width)

    def forward(self, features: ReferenceFeatures) -> Tensor:
        """Deep (B, n, c), shallow (B, L * n, c), high (B, T * n, c) -> f_ci (B, 2 * n, c_t)."""
        deep = features.deep
        shallow = self.shallow_mlp(self.shallow_attention(deep, features.shallow))  # Eqs. 5-6
        high = self.high_mlp(self.high_attention(deep, features.high))  # Eqs. 7-8
        return torch.cat([shallow, self.deep_mlp(deep) + high], dim=1)  # Eq. 9
