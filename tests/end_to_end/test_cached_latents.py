"""The optional stage `cache_latents`, switched on after a run without it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_run import TINY, run

pytestmark = [pytest.mark.slow, pytest.mark.nightly]  # tests/stages/test_cache_latents.py has the same in small


def manifests(folder: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in (folder / "stages" / stage).glob("*/manifest.json")]


def test_the_training_is_the_same(finished: tuple[Path, str]) -> None:
    """Only the stage itself and the training run; after some steps the curves are those of the training without it."""
    folder, _ = finished
    printed = run(folder, "--stage", "train_adapter", "--set=cache_latents.enabled=true")
    assert {match[1] for match in re.finditer(r"\] (\w+) +starts \(", printed)} == {"cache_latents", "train_adapter"}
    (cache,) = manifests(folder, "cache_latents")
    examples = TINY["curriculum.steps"] * TINY["curriculum.batch_size"]
    assert cache["metrics"]["examples_per_latent"] == pytest.approx(examples / cache["rows"]["latents"])
    on_this_plan = [
        one
        for one in manifests(folder, "train_adapter")
        if one["inputs"]["curriculum"] == cache["inputs"]["curriculum"]
    ]
    plain, cached = sorted(on_this_plan, key=lambda one: "cache_latents" in one["inputs"])
    assert cached["metrics"]["loss"] == pytest.approx(plain["metrics"]["loss"], rel=1e-4)
    assert cached["metrics"]["grad_norm"] == pytest.approx(plain["metrics"]["grad_norm"], rel=1e-3)
