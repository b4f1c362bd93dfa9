"""What is said of the user's data: all at once, in the words of the stages' own checks."""

from __future__ import annotations

import io
import json
import re
import tarfile
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
from tests.support.hub_cache import add_to_hub_cache
from tests.support.picture_files import encode, scene
from tests.support.refusing_hub import Refusal, hub_server, use_hub

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


def about(key: str, settings: list[str]) -> list[Finding]:
    return [finding for finding in findings(settings) if finding.text.startswith(f"{key}: ")]


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


FIELDS = {"text": "a dog on a beach", "aesthetic": 6.0, "similarity": 0.3, "punsafe": 0.1, "pwatermark": 0.1}
JPEG = encode(scene(0))


def tar(folder: Path) -> None:
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for name, data in (("0.jpg", JPEG), ("0.json", json.dumps(FIELDS).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def parquet(**changes: Any) -> Callable[[Path], None]:
    """Write a row with other columns; None: without it."""

    def write(folder: Path) -> None:
        row = {name: value for name, value in {**FIELDS, "jpg": JPEG, **changes}.items() if value is not None}
        pq.write_table(pa.Table.from_pylist([row]), folder / "00000.parquet")

    return write


def arrow(folder: Path) -> None:
    table = pa.Table.from_pylist([{**FIELDS, "image": {"bytes": JPEG, "path": None}}])
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)


def listed(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "metadata.jsonl").write_text(json.dumps({**FIELDS, "file_name": "a.jpg"}))


def beside(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "a.json").write_text(json.dumps(FIELDS))


LAYOUTS: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "webdataset": (tar, "1 tar file in", []),
    "Parquet": (parquet(), "1 Parquet file in", []),
    "Arrow": (arrow, "1 Arrow file in", []),
    "a list": (listed, "1 picture list in", []),
    "texts": (beside, "1 captioned folder in", []),
    "own columns": (
        parquet(text=None, jpg=None, words="a dog on a beach", data=JPEG),
        "1 Parquet file",
        ["filter.picture_column=data", "filter.caption_column=words"],
    ),
}


@pytest.mark.parametrize(("write", "words", "columns"), LAYOUTS.values(), ids=LAYOUTS)
def test_captioned_pictures_in_a_layout(
    write: Callable[[Path], None], words: str, columns: list[str], settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write(folder)
    (found,) = about("filter.pictures_folder", [*settings, f"filter.pictures_folder={folder}", *columns])
    assert found.level is Level.GOOD
    assert found.text.startswith(f"filter.pictures_folder: {words}")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (parquet(aesthetic=None, pwatermark=None), ["'AESTHETIC_SCORE'", "'pwatermark'"]),
        (parquet(pwatermark=None), ["'pwatermark'", "filter.max_watermark needs"]),
        (parquet(pwatermark="unknown"), ["'pwatermark'", "filter.max_watermark needs"]),
        (parquet(jpg=None), ["lacks a picture's bytes"]),
        (parquet(text=None), ["lacks a caption"]),
        (parquet(jpg=None, url="http://example.org/1.jpg"), ["--set ingest.metadata"]),
        (lambda folder: None, ["no captioned pictures"]),
        (lambda folder: (folder / "a.zip").write_bytes(b""), ["1 .zip", "unpack"]),
    ],
    ids=["no scores", "one score", "no number", "no pictures", "no captions", "URLs", "nothing", "an archive"],
)
def test_captioned_pictures_that_filter_refuses(
    write: Callable[[Path], object], words: list[str], settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write(folder)
    (found,) = problems([*settings, f"filter.pictures_folder={folder}"])
    assert all(word in found for word in words), found


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (parquet(jpg=b"x"), ["first 1 row of", "undecodable"]),
        (parquet(text=" "), ["first 1 row of", "no_caption"]),
        (lambda folder: (folder / "00000.tar").write_bytes(b"x" * 600), ["00000.tar", "its rest is rejected"]),
    ],
    ids=["no JPEG", "blank", "damaged"],
)
def test_rows_that_filter_rejects_are_a_warning(
    write: Callable[[Path], object], words: list[str], settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write(folder)
    found = findings([*settings, f"filter.pictures_folder={folder}"])
    (text,) = [one.text for one in found if one.level is not Level.GOOD]
    assert all(word in text for word in words), text


def test_a_dataset_in_the_hubs_cache(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, None, tmp_path / "hub")
    named = [*settings, "filter.pictures_folder=owner/pictures"]
    (found,) = problems(named)
    assert "hf download --repo-type dataset owner/pictures" in found
    (tmp_path / "files").mkdir()
    parquet()(tmp_path / "files")
    add_to_hub_cache(tmp_path / "hub", "owner/pictures", tmp_path / "files", kind="datasets")
    cached, layout = about("filter.pictures_folder", named)
    assert (cached.level, layout.level) == (Level.GOOD, Level.GOOD)
    assert "owner/pictures is in the hub's cache" in cached.text
    assert "1 Parquet file" in layout.text


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        ({"README.md"}, Level.GOOD, "is on the hub"),
        (Refusal(403, "GatedRepo"), Level.PROBLEM, "/datasets/owner/pictures, then set HF_TOKEN"),
        (Refusal(404, "RepoNotFound"), Level.PROBLEM, "the hub has no owner/pictures"),
        (Refusal(503), Level.UNKNOWN, "hf download --repo-type dataset owner/pictures"),
    ],
    ids=["there", "gated", "none", "away"],
)
def test_a_dataset_on_the_hub(
    answer: Refusal | set[str],
    level: Level,
    words: str,
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hub_server({"datasets/owner/pictures": answer}) as address:
        use_hub(monkeypatch, address, tmp_path / "hub")
        (found,) = about("filter.pictures_folder", [*settings, "filter.pictures_folder=owner/pictures"])
    assert found.level is level, found.text
    assert words in found.text


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
        (tmp_path / "views" / name).write_bytes(JPEG)
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
