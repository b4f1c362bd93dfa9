"""Concepts from pictures with two objects: which pictures are read, and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.instances import InstanceId
from model.microworld.scenes import SceneShares, draw_spec, render_scenes
from model.scoring.metrics import JudgeScorer
from tests.benchmarks.multi_concept_pictures import ARMS, SCORES, neighbour_of, pictures_of, table


def test_the_neighbour_is_found() -> None:
    judge = JudgeScorer.from_pretrained(WEIGHTS_FOLDER / "judge")
    mug, duck = (InstanceId(split="test", category=category, index=3) for category in ("mug", "duck"))
    specs = [draw_spec(np.random.default_rng(seed), mug, SceneShares(), neighbour=duck) for seed in range(4)]
    album = [Image.fromarray(picture) for picture in render_scenes(specs, 64).image]
    assert neighbour_of(judge, album, "mug") == "duck"
    assert neighbour_of(judge, album, "duck") == "mug"


def test_the_pictures_of_a_row_are_cut_apart(tmp_path: Path) -> None:
    sheet = Image.new("RGB", (24, 8))
    for number in range(3):
        sheet.paste((number, 0, 0), (8 * number, 0, 8 * number + 8, 8))
    (tmp_path / "scores" / "arm").mkdir(parents=True)
    sheet.save(tmp_path / "scores" / "arm" / "a.png")
    assert [picture.getpixel((7, 0)) for picture in pictures_of(tmp_path, "arm", "a")] == [(n, 0, 0) for n in range(3)]


def test_the_table_compares_with_no_mlm_loss() -> None:
    results = {
        arm: {str(subject): dict.fromkeys(SCORES, number / 10) for subject in range(3)}
        for number, arm in enumerate(ARMS)
    }
    lines = table(results).splitlines()
    assert len(lines) == len(ARMS) + 2
    assert lines[2].endswith("|  |  |  |")
    assert lines[3].endswith("|  |  |  |")
    assert lines[-1].count("+0.20 (+0.20 to +0.20)") == len(SCORES)
