"""The settings of DCI (Customized Generation Reimagined, Sec. 3.3). Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from model.settings import STRICT, Share, Text

Scales = Literal["paper", "authors"]
Ablation = Literal["no_mask", "no_entire_prompt", "no_deep_aggregation"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DCISettings:
    """How a learned concept gets its context from a second, auxiliary branch.

    `injection_strength` = 0 does not switch the auxiliary branch off: where the concept's mask before the last softmax
    is S_c, the auxiliary branch still has the weight 1 / (1 + exp(S_c)), up to one half (Eq. 4). `auxiliary_share` = 0
    switches it off, and the picture is exactly that of a plain generation.
    """

    concept: Text
    """The phrase of the prompt that names the concept: "V* <noun>", all tokens of V* and the class noun."""
    auxiliary_noun: Text | None = None
    """The noun in its place in the auxiliary prompt; null: a common noun that is likely in the prompt's context."""
    injection_strength: float = 0.0
    """lambda of Eq. 4, usually in [-2, 2]: a small one keeps the concept, a large one follows the prompt."""
    auxiliary_share: Share = 0.15
    """T_a / T: share of the denoising, from its beginning, in which there are two branches."""
    scales: Scales = "authors"
    """authors: with the scales of the authors' code; paper: Eqs. 3-4 as printed, whose masks are nearly flat."""
    auxiliary_noise: Literal["same", "own"] = "same"
    """same: both branches start from one noise; own: each has its own, as in the authors' code."""
    ablation: Ablation | None = None
    """Leaves out one component, for Fig. 10: the masks, the whole prompts, or all layers but the last one."""

    def steps_within(self, passes: int) -> int:
        """The most denoising steps T with T + T_a <= `passes`, for a comparison at equal cost (Sec. 4.2)."""
        fitting = (steps for steps in range(passes, 0, -1) if steps + self.most_auxiliary_steps(steps) <= passes)
        return next(fitting, 0)

    def most_auxiliary_steps(self, steps: int) -> int:
        """T_a, rounded down to whole steps."""
        return int(self.auxiliary_share * steps + 1e-6)
