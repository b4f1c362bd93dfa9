"""A change of the world makes the shipped weights outdated, so it must raise WORLD_VERSION.

After raising it, renew the golden file with `python -m tests.model.microworld.test_version`.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.microworld.scenes import SceneShares, SceneSpec, draw_specs, render_scenes
from model.microworld.version import WORLD_VERSION

GOLDEN = Path(__file__).parent / f"golden_world_{WORLD_VERSION}.json"


def _probes() -> list[SceneSpec]:
    return draw_specs("test", 56, seed=123, shares=SceneShares(two_objects=0.2))


def _caption_digest(specs: list[SceneSpec]) -> str:
    return hashlib.sha256("\n".join(spec.caption.text for spec in specs).encode()).hexdigest()


def _block_means(specs: list[SceneSpec]) -> NDArray[np.float64]:
    """Mean brightness (N, 8, 8) of blocks of 8 x 8 pixels: immune to another CPU's rounding, not to another drawing."""
    means: NDArray[np.float64] = render_scenes(specs).image.reshape(len(specs), 8, 8, 8, 8, 3).mean((2, 4, 5))
    return means


def test_the_world_is_the_one_of_its_version() -> None:
    assert GOLDEN.is_file(), f"the world has a new version: write {GOLDEN.name}"
    golden, specs = json.loads(GOLDEN.read_text()), _probes()
    assert _caption_digest(specs) == golden["captions"]
    assert np.abs(_block_means(specs).ravel() - golden["block_means"]).max() < 1


if __name__ == "__main__":
    probes = _probes()
    blocks = [round(float(mean), 1) for mean in _block_means(probes).ravel()]
    GOLDEN.write_text(json.dumps({"captions": _caption_digest(probes), "block_means": blocks}) + "\n")
