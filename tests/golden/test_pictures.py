"""Seeded pictures of the microworld, compared with golden ones that a person has inspected.

    python -m tests.golden.test_pictures

replaces the golden pictures after a change that is meant to change them; inspect them then.

Rounding differs between processors, so the pictures only need to be near duplicates in the sense of the stage `filter`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.scenes import draw_specs, render_scenes
from model.pipeline import RealCustomPipeline
from stages.filter.candidate import colour_grid
from stages.filter.duplicates import Signatures, find_duplicates, signatures
from stages.inference import loading_options
from stages.shared_config import BackboneConfig
from tests.support.random_adapter import write_random_adapter

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent
PROMPT, WORD = "a photo of a red mug on the beach", "mug"
ARMS = ("text_only", "adapter", "adapter_mask")


def paint(folder: Path) -> dict[str, Image.Image]:
    """The shipped base model alone, with an adapter of random weights, and with its mask."""
    torch.manual_seed(0)
    adapter = write_random_adapter(folder, WEIGHTS_FOLDER)
    pipeline = RealCustomPipeline.from_pretrained(WEIGHTS_FOLDER, adapter, **loading_options(BackboneConfig()))
    reference = Image.fromarray(render_scenes(draw_specs("test", 1, seed=7)).image[0])
    return {
        "text_only": pipeline(PROMPT, seeds=3).images[0],
        "adapter": pipeline(PROMPT, reference, WORD, seeds=3, use_mask=False).images[0],
        "adapter_mask": pipeline(PROMPT, reference, WORD, seeds=3).images[0],
    }


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image.Image]:
    return paint(tmp_path_factory.mktemp("adapter"))


def _copies(pictures: list[Image.Image]) -> list[int]:
    """The indices of the pictures that are near duplicates of an earlier one."""
    found = find_duplicates(Signatures.of(signatures((picture, colour_grid(picture)) for picture in pictures)))
    return [number for number, original in enumerate(found.original.tolist()) if original >= 0]


@pytest.mark.parametrize("arm", ARMS)
def test_the_picture_is_the_golden_one(arm: str, painted: dict[str, Image.Image]) -> None:
    golden = Image.open(GOLDEN / f"{arm}.png")
    assert _copies([golden, painted[arm]]) == [1], "inspect the pictures, then run this file"


def test_the_arms_differ(painted: dict[str, Image.Image]) -> None:
    assert _copies(list(painted.values())) == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for arm, picture in paint(Path(name)).items():
            picture.save(GOLDEN / f"{arm}.png")
