"""Adaptive scoring module (RealCustom Sec. 3.2, Eqs. 5-10): which image tokens matter, for this text, at this step.

Early in the denoising the text weighs more, later the latents do (Eq. 8).

Legend of shapes: B batch, n_t text tokens of width c_t, n_i image tokens of width c_i, h x w latent grid of c channels.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from model.adapters.adapter import AdapterError
from model.errors import GenerationError
from model.seeding import generator_of

#: How the two scores become one: "scheduled" is Eq. 8; the others are rows 3 to 5 of Table 3.
ScoreFusion = Literal["scheduled", "textual", "visual", "mean"]

#: gamma_num^low and gamma_num^high of Eq. 10.
GAMMA_NUM_RANGE = (0.3, 1.0)


class AdaptiveScoringModule(nn.Module):
    """Scores the image tokens, weighs them by their scores and keeps the best (Eqs. 5-9).

    The paper gives no width for its "two-layer MLPs"; ours are as wide as the image tokens, with GELU between. A score
    that the fusion leaves out has no weights.

    Args:
        text_width: c_t.
        latent_channels: c.
        image_width: c_i.
        fusion: "scheduled", or an ablation of Table 3.

    Raises:
        AdapterError: the fusion has another name.
    """

    def __init__(
        self, text_width: int, latent_channels: int, image_width: int, fusion: ScoreFusion = "scheduled"
    ) -> None:
        super().__init__()
        if fusion not in get_args(ScoreFusion):
            raise AdapterError(f"score_fusion is {fusion!r}; it must be one of {', '.join(get_args(ScoreFusion))}.")
        self.fusion = fusion
        if fusion != "visual":
            self.textual_pooling = nn.Linear(text_width, 1, bias=False)  # W_a^t
            self.textual_score_net = _score_net(text_width, image_width)
        if fusion != "textual":
            self.visual_pooling = nn.Linear(latent_channels, 1, bias=False)  # W_a^v
            self.visual_score_net = _score_net(latent_channels, image_width)

    def forward(self, image: Tensor, text: Tensor, latents: Tensor, alpha_bar: Tensor, gamma_num: float) -> Tensor:
        """f_ci -> hat f_ci (Eqs. 5-9).

        Args:
            image: f_ci (B, n_i, c_i)
            text: f_ct (B, n_t, c_t)
            latents: z_t (B, c, h, w); at inference z_t times the mask
            alpha_bar: of each row's timestep (B,)
            gamma_num: share of the image tokens to keep

        Returns:
            (B, floor(gamma_num * n_i), c_i), the highest score first

        Raises:
            GenerationError: gamma_num lies outside (0, 1] or keeps no token.
        """
        return select(image, self.scores(image, text, latents, alpha_bar), gamma_num)

    def scores(self, image: Tensor, text: Tensor, latents: Tensor, alpha_bar: Tensor) -> Tensor:
        """S (B, n_i) in fp32, positive, with sum 1 (Eqs. 5-8); the arguments are those of `forward`."""
        if self.fusion == "textual":
            fused = self._textual_score(image, text)
        elif self.fusion == "visual":
            fused = self._visual_score(image, latents)
        else:
            textual, visual = self._textual_score(image, text), self._visual_score(image, latents)
            fused = (textual + visual) / 2 if self.fusion == "mean" else fuse_by_schedule(textual, visual, alpha_bar)
        return fused.float().softmax(dim=1)

    def _textual_score(self, image: Tensor, text: Tensor) -> Tensor:
        context = weighted_pool(text, self.textual_pooling(text))
        return self.textual_score_net(_concat(image, context))[..., 0]

    def _visual_score(self, image: Tensor, latents: Tensor) -> Tensor:
        positions = latents.flatten(2).transpose(1, 2)
        context = weighted_pool(positions, self.visual_pooling(positions))
        return self.visual_score_net(_concat(image, context))[..., 0]


def weighted_pool(features: Tensor, logits: Tensor) -> Tensor:
    """C = A^T f with A = Softmax over the features (Eqs. 5-7): (B, n, c), (B, n, 1) -> (B, 1, c).

    Eq. 7 prints f_y where it means f_ct.
    """
    return logits.softmax(dim=1).transpose(1, 2) @ features


def fuse_by_schedule(textual: Tensor, visual: Tensor, alpha_bar: Tensor) -> Tensor:
    """S = (1 - sqrt(abar_t)) S_textual + sqrt(abar_t) S_visual (Eq. 8): (B, n_i), (B, n_i), (B,) -> (B, n_i)."""
    share = alpha_bar.sqrt()[:, None]
    return (1 - share) * textual + share * visual


def select(image: Tensor, scores: Tensor, gamma_num: float) -> Tensor:
    """f_ci (1 + S) (Eq. 9), of which the tokens with the highest scores are kept.

    Args:
        image: (B, n_i, c_i)
        scores: (B, n_i)
        gamma_num: share to keep

    Returns:
        (B, floor(gamma_num * n_i), c_i), the highest score first

    Raises:
        GenerationError: gamma_num lies outside (0, 1] or keeps no token.
    """
    count = token_count(gamma_num, image.shape[1])
    weighed = image * (1 + scores[..., None]).to(image.dtype)
    kept = scores.topk(count, dim=1).indices
    return weighed.gather(1, kept[..., None].expand(-1, -1, image.shape[2]))


def token_count(gamma_num: float, tokens: int) -> int:
    """The number of image tokens that are kept: floor(gamma_num * n_i).

    Raises:
        GenerationError: gamma_num lies outside (0, 1] or keeps no token.
    """
    # 0.29 * 100 is 28.999999999999996
    count = math.floor(gamma_num * tokens + 1e-6) if 0 < gamma_num <= 1 else 0
    if count < 1:
        raise GenerationError(
            f"gamma_num {gamma_num} must lie in (0, 1] and keep at least one of {tokens} image tokens."
        )
    return count


def sample_gamma_num(seed: int, step: int) -> float:
    """gamma_num ~ U[0.3, 1.0] of a training step (Eq. 10): one draw for the whole batch, the same on every worker."""
    low, high = GAMMA_NUM_RANGE
    return low + (high - low) * torch.rand((), generator=generator_of(seed, step, "gamma_num")).item()


def _score_net(context_width: int, image_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(context_width + image_width, image_width), nn.GELU(), nn.Linear(image_width, 1))


def _concat(image: Tensor, context: Tensor) -> Tensor:
    """Concatenate the context (B, 1, c) to every image token (B, n_i, c_i) on channels: (B, n_i, c + c_i)."""
    return torch.cat([context.expand(-1, image.shape[1], -1), image], dim=-1)
