"""The subjects of a training run's previews, and the overview of the previews."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.pictures.sheets import column
from model.training.adapter_previews import PreviewSubject
from stages.data.datasets import PictureStore, write_dataset
from stages.data.schemas import FRAMES
from stages.train_adapter.previews import choose_previews, draw_overview

RED, GREEN, BLUE, GREY = (200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90)


def _picture(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def _pixels(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture
def frames(tmp_path: Path) -> PictureStore:
    found = [("f1", "mug", RED), ("f0", "mug", GREEN), ("f2", "toy car", BLUE)]
    rows = [
        {name: None for name in FRAMES.names}
        | {"frame_id": key, "category": word, "instance": "i", "picture": _picture(colour), "width": 8, "height": 8}
        for key, word, colour in found
    ]
    write_dataset(tmp_path / "frames", pa.Table.from_pylist(rows, schema=FRAMES), FRAMES)
    return PictureStore(tmp_path / "frames", "frame_id")


def test_categories_take_turns(frames: PictureStore) -> None:
    subjects = choose_previews(frames, ["a {word} here", "a {word} there", "one {word}"])
    assert [(subject.word, subject.prompt) for subject in subjects] == [
        ("mug", "a mug here"),
        ("toy car", "a toy car there"),
        ("mug", "one mug"),
    ]
    assert [subject.reference for subject in subjects] == [_picture(GREEN), _picture(BLUE), _picture(GREEN)]


def test_the_overview_shows_references_and_previews_by_step(tmp_path: Path) -> None:
    """Rows: a red and a green subject, the first reference not square; columns: reference, steps 5 and 10."""
    subjects = [
        PreviewSubject(reference=_picture(RED, (12, 8)), word="mug", prompt="a mug"),
        PreviewSubject(reference=_picture(GREEN), word="car", prompt="a car"),
    ]
    (tmp_path / "previews").mkdir()
    for step, colours in ((10, (RED, GREEN)), (5, (BLUE, GREY))):
        pictures = [Image.new("RGB", (16, 16), colour) for colour in colours]
        column(pictures).save(tmp_path / "previews" / f"{step:07d}.png")
    draw_overview(tmp_path / "previews", subjects, tmp_path / "overview.png")
    overview = _pixels(tmp_path / "overview.png")
    assert overview.shape == (2 * 214 + 28, 3 * 200 + 8, 3)
    middles = overview[28 + 96 :: 214, 8 + 96 :: 200]
    assert middles.tolist() == [[list(colour) for colour in row] for row in ((RED, BLUE, RED), (GREEN, GREY, GREEN))]


def test_of_many_previews_the_first_and_the_last_are_shown(tmp_path: Path) -> None:
    subject = PreviewSubject(reference=_picture(RED), word="mug", prompt="a mug")
    for step in range(40):
        column([Image.new("RGB", (8, 8), (step, step, step))]).save(tmp_path / f"{step:07d}.png")
    draw_overview(tmp_path, [subject], tmp_path / "overview.png")
    overview = _pixels(tmp_path / "overview.png")
    assert overview.shape[1] == 13 * 200 + 8
    shown = overview[28 + 96, 8 + 96 :: 200, 0].tolist()[1:]
    assert shown[0] == 0
    assert shown[-1] == 39
    assert shown == sorted(set(shown))
