"""The settings of DCI: their ranges, the steps that they mean, and the experiments of the figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from model.dci.auxiliary_branch import auxiliary_steps
from model.dci.figures import ablations, injection_strengths, noun_replacements
from model.dci.settings import DCISettings
from model.errors import GenerationError

DCI = DCISettings(concept="[v] hat")


@pytest.mark.parametrize(
    "wrong",
    [
        {"concept": ""},
        {"concept": "a\nb"},
        {"auxiliary_noun": " "},
        {"injection_strength": float("nan")},
        {"injection_strength": "1"},
        {"auxiliary_share": 1.5},
        {"auxiliary_share": -0.1},
        {"scales": "ours"},
        {"auxiliary_noise": "none"},
        {"ablation": "all"},
    ],
    ids=str,
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"concept": "[v] dog", **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DCISettings(**settings)


@pytest.mark.parametrize(
    ("timestep", "two_branches"), [(1000, True), (701, True), (700.5, True), (700, False), (1, False)]
)
def test_the_window_of_timesteps(timestep: float, two_branches: bool) -> None:
    scheduler, dci = DDIMScheduler(), replace(DCI, auxiliary_share=0.3)
    scheduler.timesteps = torch.tensor([timestep] * 10)
    if two_branches:
        assert auxiliary_steps(scheduler, dci) == range(3)
    else:
        with pytest.raises(GenerationError, match=r"auxiliary_share 0\.3 leaves the auxiliary branch none of 10 steps"):
            auxiliary_steps(scheduler, dci)


@pytest.mark.parametrize(
    ("steps", "spacing", "share", "first", "last", "count"),
    [
        (200, "leading", 0.3, 996, 701, 60),
        (50, "leading", 0.3, 981, 701, 15),
        (200, "leading", 0.15, 996, 851, 30),
        (50, "leading", 0.15, 981, 861, 7),
        (25, "trailing", 0.15, 999, 919, 3),
        (25, "leading", 1.0, 961, 1, 25),
    ],
)
def test_the_window_of_a_schedule(steps: int, spacing: str, share: float, first: int, last: int, count: int) -> None:
    scheduler = DDIMScheduler(steps_offset=1, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    found = auxiliary_steps(scheduler, replace(DCI, auxiliary_share=share))
    assert found == range(count)
    assert scheduler.timesteps[[0, count - 1]].tolist() == [first, last]


@pytest.mark.parametrize("share", [0.0, 0.15, 0.3, 1.0])
def test_steps_at_equal_cost(share: float) -> None:
    settings = replace(DCI, auxiliary_share=share)
    for passes in range(2, 120):
        steps = settings.steps_within(passes)
        assert steps + settings.most_auxiliary_steps(steps) <= passes
        assert steps + 1 + settings.most_auxiliary_steps(steps + 1) > passes


def test_the_experiments_of_the_figures() -> None:
    assert injection_strengths(DCI, [-2, 0.5])[0.5] == replace(DCI, injection_strength=0.5)
    assert noun_replacements(DCI, ["cat", "owl"])["owl"] == replace(DCI, auxiliary_noun="owl")
    found = ablations(DCI)
    assert found["DCI"] == DCI
    assert [one.ablation for one in found.values()] == [None, "no_mask", "no_entire_prompt", "no_deep_aggregation"]
