"""The section `compute` says once what the sections of stages then have."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipelines.config.keys import configuration_keys, flat_values, without_marks
from pipelines.config.loading import config_from_dict, config_to_dict, load_config, with_values
from stages.compute_config import FOLLOWERS, ComputeConfig
from stages.training.config import TrainerConfig

ALL_FOLLOWERS = [(key, name) for key, names in FOLLOWERS.items() for name in names]
#: Another value than any profile has, and what it needs besides.
OTHER: dict[str, tuple[Any, str]] = {
    "compute.workers": (4, "4"),
    "compute.min_workers": (1, "1"),
    "compute.use_gpu": (True, "true"),
    "compute.precision": ("bf16", "bf16"),
}


@pytest.mark.parametrize(("key", "name"), ALL_FOLLOWERS)
def test_a_setting_follows_compute_unless_it_is_set_itself(key: str, name: str) -> None:
    value, text = OTHER[key]
    own_of_micro = name in ("contextualizer.trainer.workers", "customize.trainer.workers", "cache_latents.actors")
    before, after = flat_values(load_config("micro")), flat_values(load_config("micro", [f"{key}={text}"]))
    assert after[name] == (1 if own_of_micro else value)
    itself = flat_values(load_config("micro", [f"{key}={text}", f"{name}={_text(before[name])}"]))
    assert itself[name] == before[name]


@pytest.mark.parametrize(("key", "name"), ALL_FOLLOWERS)
def test_a_follower_takes_what_compute_takes_and_is_of_the_same_kind(key: str, name: str) -> None:
    keys = configuration_keys()
    assert without_marks(keys[name].type) == without_marks(keys[key].type)
    assert keys[name].of_operation == keys[key].of_operation


@pytest.mark.parametrize("profile", ["sd15", "sdxl"])
def test_a_profile_moves_to_the_cpu_with_one_setting(profile: str) -> None:
    values = flat_values(load_config(profile, ["compute.use_gpu=false"]))
    assert not [name for name in values if name.endswith("use_gpu") and values[name]]


def test_a_stored_configuration_follows_a_setting_where_it_followed_before() -> None:
    stored = config_to_dict(load_config("micro", ["compute.workers=2", "evaluate.workers=1"]))
    changed = config_from_dict(stored, ["compute.workers=4"])
    assert (changed.train_adapter.trainer.workers, changed.evaluate.workers) == (4, 1)
    assert with_values(changed, {"compute.workers": 8}).train_adapter.trainer.workers == 8
    assert config_from_dict(config_to_dict(changed)) == changed


def test_a_configuration_that_was_stored_before_there_was_compute_is_the_same() -> None:
    stored = config_to_dict(load_config("sd15"))
    del stored["compute"]
    found = config_from_dict(stored)
    assert dataclasses.replace(found, compute=load_config("sd15").compute) == load_config("sd15")


@pytest.mark.parametrize(
    ("settings", "batch_size", "expected"),
    [
        ({"workers": 1}, 7, [1]),
        ({"workers": 4}, 16, [4]),
        ({"workers": 4, "min_workers": 4}, 16, [4]),
        ({"workers": 4, "min_workers": 1}, 16, [4, 2, 1]),
        ({"workers": 4, "min_workers": 2}, 16, [4, 2]),
        ({"workers": 4, "min_workers": 3}, 16, [4]),
        ({"workers": 8, "min_workers": 1}, 24, [8, 6, 4, 3, 2, 1]),
        ({"workers": 8, "min_workers": 1, "accumulation": 2}, 16, [8, 4, 2, 1]),
        ({"workers": 8, "min_workers": 1, "accumulation": 4}, 32, [8, 4, 2, 1]),
        ({"workers": 2, "min_workers": 4}, 16, [2]),  # compute says 4, the section has its own workers
    ],
)
def test_the_numbers_of_workers_that_a_training_may_go_on_with(
    settings: dict[str, Any], batch_size: int, expected: list[int]
) -> None:
    assert TrainerConfig(**settings).worker_counts(batch_size) == expected


def test_direct_construction_validates() -> None:
    with pytest.raises(ValueError, match="min_workers=3 is above workers=2"):
        ComputeConfig(workers=2, min_workers=3)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower()
