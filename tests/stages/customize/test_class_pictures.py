"""Pictures of a class for prior preservation: from a folder, or painted once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stages.contract import StageError
from stages.customize.class_pictures import ClassJob, class_pictures, paint_class
from stages.customize.painting_task import Device
from tests.support.contexts import make_context
from tests.support.subject_folder import png

DREAMBOOTH: dict[str, Any] = {"method": "dreambooth", "prior_weight": 1.0, "prior_pictures": 3}


def test_without_a_prior_there_are_none(tmp_path: Path) -> None:
    assert class_pictures(["toy", "mug"], make_context(tmp_path)) == {"toy": (), "mug": ()}


def test_real_pictures_come_from_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    folder.mkdir()
    context = make_context(tmp_path, customize={**DREAMBOOTH, "words": ["dog", "dog"], "prior_folder": str(folder)})
    with pytest.raises(StageError, match=r"customize\.prior_folder: .*dogs holds no picture"):
        class_pictures(context.config.customize.words, context)
    (folder / "0.jpg").write_bytes(b"no picture")
    for number in range(1, 6):
        (folder / f"{number}.png").write_bytes(png(number, (90, 70)))
    found = class_pictures(context.config.customize.words, context)
    assert list(found) == ["dog"]
    assert [Image.open(io.BytesIO(picture)).size for picture in found["dog"]] == [(64, 64)] * 3


def test_painted_pictures_are_painted_once(tmp_path: Path) -> None:
    """Without Ray: nothing is painted."""
    context = make_context(tmp_path, customize={**DREAMBOOTH, "words": ["toy", "mug"]})
    for word in range(2):
        (context.scratch / "class" / str(word)).mkdir(parents=True)
        for number in range(3):
            (context.scratch / "class" / str(word) / f"{number:05d}.png").write_bytes(png(10 * word + number))
    assert class_pictures(context.config.customize.words, context) == {
        "toy": (png(0), png(1), png(2)),
        "mug": (png(10), png(11), png(12)),
    }


@pytest.mark.slow
def test_a_painted_picture_depends_on_its_number_only(tmp_path: Path, backbone: Path) -> None:
    settings = make_context(tmp_path, customize={"scoring": {"steps": 2}}).config.customize.scoring.inference

    def paint(*numbers: int) -> dict[int, bytes]:
        location = str(backbone / "backbone")
        job = ClassJob(
            backbone=location,
            device=Device("cpu", torch.float32),
            word="toy",
            numbers=numbers,
            batch_size=2,
            seed=0,
            settings=settings,
            setting="run.folder",
        )
        return dict(paint_class(job))

    every = paint(0, 1, 2)
    assert len(set(every.values())) == 3
    assert paint(2) == {2: every[2]}
