"""What is said of the user's data: all at once, in the words of the stages' own checks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.doctor.findings import Level
from tests.support.doctor_data import LAION, about, findings, problems
from tests.support.picture_files import encode, scene


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
    keys = ("customize.subjects", "evaluate.subjects_folder", "ingest.metadata", "multiview.folders")
    found = sorted(problems(["customize.subjects=[my_dog]"]))
    assert [text.partition(":")[0] for text in found] == list(keys)
    assert all(str(tmp_path) in text and "docs/datasets.md" in text for text in found)


WITHOUT = {"customize": "[]", "evaluate": "0"}


def test_what_is_left_out_of_the_run_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = problems(["evaluate.subjects=0", "customize.subjects=[]"])
    assert [text.partition(":")[0] for text in found] == ["ingest.metadata", "multiview.folders"]
    said = [one.text for one in findings(["evaluate.subjects=0"]) if one.level is Level.GOOD]
    assert said == [f"the run is without {name} ({name}.subjects={none})" for name, none in WITHOUT.items()]


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
    "CSV": (lambda folder: (folder / "laion" / "part-0.parquet").rename(folder / "laion" / "a.csv"), ["no text"]),
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
    wrong = [f"multiview.folders=[{tmp_path / 'empty'}, {tmp_path / 'laion'}]", "filter.languages=[en]"]
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


VIEWS: dict[str, tuple[list[str], str]] = {
    "MVImgNet": (["7/a/images/1.jpg", "7/b/images/1.jpg"], "2 objects in .*: 2 with COLMAP's cameras"),
    "CO3D": (["toytruck/frame_annotations.jgz", "toytruck/1_2/images/1.jpg"], "1 object in .*: 1 with CO3D's cameras"),
    "plain": (["dog/1.jpg", "cat/1.jpg"], "2 objects in .*: 2 without cameras"),
    "both": (["7/a/images/1.jpg", "dog/1.jpg"], "2 objects in .*: 1 with COLMAP's cameras .*, 1 without cameras"),
}


@pytest.mark.parametrize(("files", "words"), VIEWS.values(), ids=VIEWS)
def test_views_of_objects_in_a_layout(files: list[str], words: str, settings: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / "views" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "views" / name).write_bytes(encode(scene(0)))
    (finding,) = about("multiview.folders", [*settings, f"multiview.folders=[{tmp_path / 'views'}]"])
    assert finding.level is Level.GOOD
    assert re.search(words, finding.text), finding.text


@pytest.mark.parametrize(
    ("listing", "own", "words"),
    [
        (None, [], "2 subjects (backpack, dog), prompts from DreamBench's lists"),
        (None, ["evaluate.prompts=['a {word}']"], "prompts from evaluate.prompts"),
        ("subjects.json", [], "1 subject (puppy), prompts from DreamBench's lists"),
        ("dataset.json", [], "1 subject (puppy), prompts from the folder's lists"),
    ],
    ids=["folders", "own prompts", "subjects.json", "CustomConcept101"],
)
def test_held_out_subjects_in_a_layout(
    listing: str | None, own: list[str], words: str, settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "dreambench"
    entries = {
        "subjects.json": {"subject": "d", "word": "puppy", "pictures": ["dog/0.png", "dog/1.png"]},
        "dataset.json": {"instance_data_dir": "x/dog", "class_prompt": "puppy", "prompt_filename": "p.txt"},
    }
    if listing is not None:
        (folder / listing).write_text(json.dumps([entries[listing]]))
    (folder / "p.txt").write_text("a {} in the snow")
    (finding,) = about("evaluate.subjects_folder", [*settings, *own])
    assert finding.level is Level.GOOD
    assert words in finding.text
