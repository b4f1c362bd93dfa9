"""What is said of the user's data: all at once, in the words of the stages' own checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.config.loading import load_config
from pipelines.doctor.data import check
from pipelines.doctor.findings import Finding, Level, Setup

LAION: dict[str, Any] = {
    "URL": ["http://example.org/1.jpg"],
    "TEXT": ["a dog"],
    "AESTHETIC_SCORE": [6.0],
    "similarity": [0.3],
    "punsafe": [0.1],
    "pwatermark": [0.1],
}


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Of the profile sd15 on small data that are all right."""
    laion, views = tmp_path / "laion", tmp_path / "mvimgnet"
    laion.mkdir()
    pq.write_table(pa.table(LAION), laion / "part-0.parquet")
    (views / "7" / "a" / "images").mkdir(parents=True)
    paint(tmp_path / "my_dog", 3)
    for name in ("dog", "backpack"):
        paint(tmp_path / "dreambench" / name, 2)
    places = {
        "ingest.metadata": laion,
        "multiview.folders": f"[{views}]",
        "customize.subjects": f"[{tmp_path / 'my_dog'}]",
        "evaluate.subjects_folder": tmp_path / "dreambench",
        "run.folder": tmp_path / "run",
    }
    return [f"{key}={value}" for key, value in places.items()]


def paint(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (20, 30), (number, 40, 90)).save(folder / f"{number}.png")


def findings(settings: list[str], profile: str = "sd15") -> list[Finding]:
    return list(check(Setup.of(load_config(profile, settings))))


def problems(settings: list[str], profile: str = "sd15") -> list[str]:
    found = [finding.text for finding in findings(settings, profile) if finding.level is Level.PROBLEM]
    assert all("\n" not in text and not text.endswith(".") for text in found)
    return found


def columns(**changes: Any) -> Callable[[Path], None]:
    """Write LAION's metadata with other columns; None: without it."""

    def write(folder: Path) -> None:
        table = {name: values for name, values in {**LAION, **changes}.items() if values is not None}
        pq.write_table(pa.table(table), folder / "laion" / "part-0.parquet")

    return write


def test_data_that_are_all_right(settings: list[str]) -> None:
    assert [finding.level for finding in findings(settings)] == [Level.GOOD] * 4
    assert findings([], "micro") == []


def test_everything_that_is_not_there_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ("ingest.metadata", "multiview.folders", "customize.subjects", "evaluate.subjects_folder")
    assert sorted(text.partition(":")[0] for text in problems([])) == sorted(keys)


def no_pictures(folder: Path) -> None:
    for file in (folder / "my_dog").iterdir():
        file.unlink()


def rename_folders(folder: Path) -> None:
    for name in ("dog", "backpack"):
        (folder / "dreambench" / name).rename(folder / name)


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no URL": (columns(URL=None), ["part-0.parquet lacks a column", "ingest.url_column"]),
    "no caption": (columns(TEXT=None), ["lacks a column", "ingest.caption_column"]),
    "no scores": (columns(AESTHETIC_SCORE=None, pwatermark=None), ["min_aesthetic=null", "max_watermark=null"]),
    "no aesthetic": (columns(AESTHETIC_SCORE=None), ["'AESTHETIC_SCORE'", "filter.scoring.aesthetic_head"]),
    "null": (columns(AESTHETIC_SCORE=pa.nulls(1, pa.float64())), ["'AESTHETIC_SCORE'", "min_aesthetic=null"]),
    "no rows": (columns(**{name: values[:0] for name, values in LAION.items()}), ["no rows"]),
    "no Parquet": (lambda folder: (folder / "laion" / "part-0.parquet").write_bytes(b"PAR"), ["not a Parquet file"]),
    "CSV": (lambda folder: (folder / "laion" / "part-0.parquet").rename(folder / "laion" / "a.csv"), ["no *.parquet"]),
    "no views": (lambda folder: (folder / "mvimgnet" / "7" / "a" / "images").rmdir(), ["MVImgNet's layout"]),
    "no pictures": (no_pictures, ["has no picture"]),
    "broken": (
        lambda folder: [file.write_bytes(b"x") for file in (folder / "my_dog").iterdir()],
        ["no picture of the"],
    ),
    "one picture": (lambda folder: (folder / "dreambench" / "dog" / "1.png").unlink(), ["dog", "1 pictures"]),
    "cut": (lambda folder: (folder / "dreambench" / "dog" / "1.png").write_bytes(b"x"), ["dog", "1.png"]),
    "no subjects": (rename_folders, ["dreambench"]),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_one_thing_that_is_wrong(
    damage: Callable[[Path], object], words: list[str], settings: list[str], tmp_path: Path
) -> None:
    damage(tmp_path)
    found = problems(settings)
    assert len(found) == 1
    assert all(word in found[0] for word in words), found


def test_all_that_is_wrong_is_found_in_one_run(settings: list[str], tmp_path: Path) -> None:
    columns(AESTHETIC_SCORE=None, pwatermark=None)(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "dreambench" / "dog" / "1.png").unlink()
    wrong = [f"multiview.folders=[{tmp_path / 'empty'}, {tmp_path / 'my_dog'}]", "filter.languages=[en]"]
    found = problems([*settings, *wrong])
    assert len(found) == 4
    assert "--set filter.max_watermark=null --set filter.min_aesthetic=null --set filter.languages=null" in found[0]
    assert str(tmp_path / "empty") in found[1]


def test_folders_that_are_there_are_looked_at_beside_those_that_are_not(settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong = [
        f"multiview.folders=[{tmp_path / 'none'}, {tmp_path / 'nowhere'}, {tmp_path / 'empty'}]",
        f"customize.subjects=[{tmp_path / 'none'}, {tmp_path / 'empty'}, {tmp_path / 'my_dog'}]",
        "customize.words=[dog, cat, toy]",
    ]
    found = problems([*settings, *wrong])
    views, subjects = "multiview.folders", "customize.subjects"
    assert [text.partition(":")[0] for text in found] == [views, views, subjects, views, subjects]


def test_captions_must_lie_beside_their_pictures(settings: list[str]) -> None:
    (found,) = problems([*settings, "customize.prompts=captions"])
    assert "0.txt" in found


def test_a_subject_with_one_picture_is_a_warning(settings: list[str], tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "my_dog" / f"{number}.png").unlink()
    assert ["one picture" in one.text for one in findings(settings) if one.level is Level.WARNING] == [True]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"jpg": [b"x"], "caption": ["a"]}, ["'AESTHETIC_SCORE'", "'pwatermark'"]),
        ({"jpg": [b"x"], "caption": ["a"], "aesthetic": [1.0]}, ["'pwatermark'", "filter.max_watermark needs"]),
        ({"caption": ["a"]}, ["lacks a picture's bytes"]),
        ({"jpg": [b"x"]}, ["lacks a caption"]),
        (None, ["neither a folder that img2dataset wrote"]),
    ],
    ids=["no scores", "one score", "no pictures", "no captions", "nothing"],
)
def test_pictures_of_another_tool(
    table: dict[str, Any] | None, words: list[str], settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    if table is not None:
        pq.write_table(pa.table(table), folder / "00000.parquet")
    (found,) = problems([*settings, f"filter.pictures_folder={folder}"])
    assert all(word in found for word in words), found
