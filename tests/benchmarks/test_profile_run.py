from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import profile_run
from tests.benchmarks.support.noise_pictures import jpeg, smooth_noise


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects, four pictures of each."""
    folder, random = tmp_path_factory.mktemp("dreambench"), np.random.default_rng(0)
    for subject in ("can", "dog"):
        (folder / subject).mkdir()
        for number in range(4):
            (folder / subject / f"{number:02d}.jpg").write_bytes(jpeg(smooth_noise(random, 800, 800)))
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("profile", list(profile_run.REPOSITORIES))
def test_a_profile_runs_from_hub_ids_to_a_served_picture(profile: str, photographs: Path, tmp_path: Path) -> None:
    profile_run.main([str(photographs), "--profile", profile, "--output", str(tmp_path), "--narrow"])
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert list(costs)[-3:] == ["register", "generate", "serve, a request"]
    assert {"ingest", "filter", "multiview", "train_adapter", "customize", "evaluate"} <= set(costs)
    assert all(cost["peak_bytes"] > 0 for cost in costs.values())
    assert len(list((tmp_path / "run" / "generated").glob("*.png"))) == 2
