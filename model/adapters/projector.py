"""Cross-layer cross-scale projector (RealCustom++ Sec. III-C1, Eqs. 5-9).

Legend of shapes: B batch, n patches of the low-resolution reference, L shallow levels, T high-resolution tiles, c width
of the image features, c_t width of the text states (the UNet's cross-attention width).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from model.adapters.adapter import AdapterError
from model.adapters.image_encoder import ReferenceFeatures

#: How features join the deep ones: concatenated as additional tokens, or added element by element.
Combination = Literal["concat", "add"]


class MinAttention(nn.Module):
    """Multi-head cross-attention: LayerNorm on both inputs, no biases, no output projection (authors' code).

    Args:
        width: c, of both inputs and of the output.
        head_width: 64 in the authors' code; inputs narrower than this get one head.

    Raises:
        AdapterError: the width does not divide into heads.
    """

    def __init__(self, width: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = max(1, width // head_width)
        if width % self.heads:
            raise AdapterError(f"image features of width {width} do not divide into heads of width {head_width}.")
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
    one linear layer, as in the authors' code. Rows of Tables VIII and IX by (`cross_layer`, `cross_scale`):

        (None, None)           VIII 1: the naive projector
        ("concat", None)       VIII 2: with the cross-layer mechanism
        ("concat", "add")      VIII 3 = IX: CCP, Eq. 9; the default
        ("concat", "concat")   IX: both concatenated
        ("add", "concat")      IX: cross-layer added, cross-scale concatenated

    Table IX prints CCP as "cross-scale token concat + cross-layer element add"; Eq. 9 and the text of Sec. IV-C say
    the opposite, and this class follows them. A branch that is None has no weights.

    Args:
        image_width: c, width of the encoders' features (all encoders concatenated).
        token_width: c_t.
        head_width: of the cross-attentions.
        cross_layer: how f_shallow' joins; None leaves Eqs. 5-6 out.
        cross_scale: how f_high' joins; None leaves Eqs. 7-8 out.

    Raises:
        AdapterError: a combination has another name, or the width does not divide into heads.
    """

    @register_to_config
    def __init__(
        self,
        image_width: int,
        token_width: int,
        head_width: int = 64,
        cross_layer: Combination | None = "concat",
        cross_scale: Combination | None = "add",
    ) -> None:
        super().__init__()
        for name, value in {"cross_layer": cross_layer, "cross_scale": cross_scale}.items():
            if value not in (None, *get_args(Combination)):
                raise AdapterError(f"{name} is {value!r}; it must be 'concat', 'add' or None.")
        if cross_layer is not None:
            self.shallow_attention = MinAttention(image_width, head_width)
            self.shallow_mlp = _mlp(image_width, token_width)
        if cross_scale is not None:
            self.high_attention = MinAttention(image_width, head_width)
            self.high_mlp = _mlp(image_width, token_width)
        self.deep_mlp = nn.Linear(image_width, token_width)

    def forward(self, features: ReferenceFeatures) -> Tensor:
        """Deep (B, n, c), shallow (B, L * n, c), high (B, T * n, c) -> f_ci (B, n, c_t), n more per "concat"."""
        deep, branches = features.deep, []
        cross_layer, cross_scale = self.config["cross_layer"], self.config["cross_scale"]
        if cross_layer is not None:
            branches.append((cross_layer, self.shallow_mlp(self.shallow_attention(deep, features.shallow))))  # Eqs. 5-6
        if cross_scale is not None:
            branches.append((cross_scale, self.high_mlp(self.high_attention(deep, features.high))))  # Eqs. 7-8
        return combine(self.deep_mlp(deep), branches)


def combine(deep: Tensor, branches: Sequence[tuple[Combination, Tensor]]) -> Tensor:
    """Eq. 9 and its ablations: branches (B, n, c_t), concatenated with or added to MLP(f_deep) (B, n, c_t)."""
    concatenated = [tokens for combination, tokens in branches if combination == "concat"]
    added = [tokens for combination, tokens in branches if combination == "add"]
    return torch.cat([*concatenated, sum(added, deep)], dim=1)
