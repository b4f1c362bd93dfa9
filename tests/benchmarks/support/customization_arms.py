"""The arms of `customization_methods`: what is trained, and with which DCI it paints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.concepts.customization_settings import Method

METHODS: dict[Method, str] = {
    "textual_inversion": "TI",
    "xti": "XTI",
    "dreambooth": "DreamBooth",
    "custom_diffusion": "Custom Diffusion",
}
WEIGHTS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)  # lambda of Algorithm 2; the paper has 0, 1e-5, 1e-4 and 5e-4
MASK_RATES = (0.15, 0.3, 0.5, 0.9)  # the paper has 0.15, 0.5 and 0.9
MLM_WEIGHT = 1e-2
VECTORS = (1, 2, 3)  # S of ICO's Eq. 2
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # lambda of DCI's Eq. 4

#: With every arm. Constant rates: the concepts along the way are those of shorter trainings. No class pictures, which
#: preserve the class word: it is not painted here.
_COMMON: Mapping[str, Any] = {
    "customize.trainer.schedule": "constant",
    "customize.pictures": "album",
    "customize.prior_weight": 0.0,
}
#: Of ICO and the fixed templates: a rate at which Custom Diffusion's weights overfit in few steps.
_CURVE: Mapping[str, Any] = {
    "customize.trainer.learning_rate": 1e-3,
    "customize.steps": 60,
    "customize.sample_every": 30,
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of a table or a curve.

    Attributes:
        name: Of its results.
        label: For people.
        values: Settings of `customize` by dotted key, over the method's own.
        training: Name of its training; an arm with DCI shares that of the arm without.
        tailored: Whether the context-rich prompts are tailored to the class word (Contextualizer, Sec. 5.3).
        strength: DCI's lambda; None: without DCI.
    """

    name: str
    label: str
    values: Mapping[str, Any]
    training: str = ""
    tailored: bool = False
    strength: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "training", self.training or self.name)


def with_mlm(method: Method, weight: float = MLM_WEIGHT, rate: float = MASK_RATES[0]) -> Arm:
    """A method with the MLM loss, or without for a weight of 0."""
    values: dict[str, Any] = {**_COMMON, "customize.method": method, "customize.mlm": weight > 0}
    if weight == 0:
        return Arm(name=method, label=METHODS[method], values=values)
    values |= {"customize.mlm_weight": weight, "customize.mask_rate": rate}
    name = f"{method}-lambda-{weight:g}-masked-{rate:g}"
    label = f"{METHODS[method]}, lambda {weight:g}, {rate:.0%} masked"
    return Arm(name=name, label=label, values=values)


def with_tailored_prompts(method: Method) -> Arm:
    """A method with the MLM loss on prompts that are tailored to the class word."""
    arm = with_mlm(method)
    return replace(arm, name=f"{arm.name}-tailored", label=f"{arm.label}, tailored prompts", training="", tailored=True)


def with_resized_pictures() -> Arm:
    """Custom Diffusion with its authors' augmentation."""
    arm = with_mlm("custom_diffusion", 0.0)
    values = {**arm.values, "customize.resize": True}
    return replace(arm, name=f"{arm.name}-resized", label=f"{arm.label}, resized pictures", training="", values=values)


def with_prompts(prompts: str, vectors: int) -> Arm:
    """Custom Diffusion's weights, with fixed templates or with ICO's contexts (M = 1, L = 1)."""
    values = {
        "customize.method": "custom_diffusion",
        "customize.mlm": False,
        "customize.prompts": prompts,
        "customize.vectors": vectors,
        "customize.context_before": 1,
        "customize.context_after": 1,
        **_CURVE,
    }
    label = f"{'ICO' if prompts == 'ico' else 'fixed templates'}, S = {vectors}"
    return Arm(name=f"{prompts}-{vectors}", label=label, values={**_COMMON, **values})


def with_dci(arm: Arm, strength: float) -> Arm:
    """The concept of an arm, painted with DCI."""
    return Arm(
        name=f"{arm.name}-dci{strength:+g}",
        label=f"{arm.label} + DCI, lambda {strength:g}",
        values=arm.values,
        training=arm.training,
        strength=strength,
    )


_CONCEPTS = [with_prompts(prompts, VECTORS[-1]) for prompts in ("ico", "fixed")]

#: The arms of each experiment, in the order of its table.
EXPERIMENTS: dict[str, list[Arm]] = {
    "mlm": [with_mlm(method, weight) for method in METHODS for weight in (0.0, MLM_WEIGHT)],
    "lambda": [with_mlm("textual_inversion", weight) for weight in WEIGHTS],
    "mask_rate": [with_mlm("textual_inversion", rate=rate) for rate in MASK_RATES],
    "tailored": [
        with_mlm("textual_inversion", 0.0),
        with_mlm("textual_inversion"),
        with_tailored_prompts("textual_inversion"),
    ],
    "resize": [with_mlm("custom_diffusion", 0.0), with_resized_pictures()],
    "ico": [with_prompts(prompts, vectors) for prompts in ("fixed", "ico") for vectors in VECTORS],
    "dci": [arm for concept in _CONCEPTS for arm in (concept, *(with_dci(concept, value) for value in STRENGTHS))],
}
