"""Captioned pictures as people have them: layouts and column names of public sets and tools."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from stages.contract import StageError
from stages.data.datasets import read_dataset
from stages.data.schemas import SAMPLES
from stages.filter.adoption import adopt_file
from stages.filter.foreign_rows import USUAL, Columns
from stages.filter.hub_datasets import hub_dataset, is_hub_id
from stages.filter.layouts import find_layout
from stages.storage import StorePath, store_path
from tests.support.caption_sets import (
    CAPTIONS,
    IMAGES,
    LAYOUTS,
    PICTURES,
    ROWS,
    Write,
    all_of,
    archive,
    as_json,
    files,
    lines,
    parquet,
    text,
)
from tests.support.picture_files import png, scene


def adopted(source: StorePath, folder: Path, columns: Columns = USUAL) -> list[dict[str, Any]]:
    layout = find_layout(source, columns)
    for number in range(len(layout.files)):
        adopt_file(layout, number, source, folder)
    return list(read_dataset(folder / "samples", SAMPLES).to_pylist())


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(write: Write, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    rows = adopted(tmp_path / "data", tmp_path / "adopted")
    assert {row["caption"].replace("'", '"') for row in rows} == set(CAPTIONS)
    assert {row["caption"].replace("'", '"'): row["picture"] for row in rows} == dict(
        zip(CAPTIONS, PICTURES, strict=True)
    )
    assert len({row["sample_id"] for row in rows}) == 2


@pytest.mark.parametrize(
    "name", ["image and text", "img2dataset", "imagefolder, jsonl", "journeydb", "texts beside pictures"]
)
def test_layouts_in_a_store(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    LAYOUTS[name](tmp_path / "data")
    root = store_path(f"memory://{tmp_path.name}/data")
    for file in (file for file in (tmp_path / "data").rglob("*") if file.is_file()):
        (root / str(file.relative_to(tmp_path / "data"))).write_bytes(file.read_bytes())
    assert {row["caption"] for row in adopted(root, tmp_path / "adopted")} == set(CAPTIONS)


@pytest.mark.parametrize(
    ("write", "columns"),
    [
        (parquet(jpg_0=PICTURES, jpg_1=PICTURES[::-1], caption=CAPTIONS), Columns(picture="jpg_0")),
        (parquet(image=IMAGES, text=["x", "y"], Title=CAPTIONS), Columns(caption="Title")),
        (
            archive(lambda n, p, c: {f"{n}.jpg": p, f"{n}.json": as_json(caption="x", title=c)}),
            Columns(caption="title"),
        ),
        (archive(lambda n, p, c: {f"{n}.tif0": p, f"{n}.jpg": b"x", f"{n}.txt": c.encode()}), Columns(picture="tif0")),
        (
            all_of(
                files("0.jpg", "1.jpg"),
                lines("x.jsonl", *({"place": r["file_name"], "words": r["text"]} for r in ROWS)),
            ),
            Columns(picture="place", caption="words"),
        ),
    ],
    ids=["two pictures", "another caption", "json", "member", "list"],
)
def test_columns_that_the_user_names(write: Write, columns: Columns, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    rows = adopted(tmp_path / "data", tmp_path / "adopted", columns)
    assert {row["caption"]: row["picture"] for row in rows} == dict(zip(CAPTIONS, PICTURES, strict=True))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            parquet(url=["http://h"], caption=["x"]),
            r"lacks a picture's bytes.* are url, caption: .*--set ingest\.metadata",
        ),
        (parquet(URL=["http://h"], TEXT=["x"], punsafe=[0.1]), r"--set ingest\.metadata"),
        (parquet(image=IMAGES, label=[1, 2]), r"lacks a caption.*columns are image, label: .*filter\.caption_column"),
        (
            parquet(jpg_0=PICTURES, jpg_1=PICTURES, caption=CAPTIONS),
            r"are jpg_0, jpg_1, caption: .*filter\.picture_column",
        ),
        (parquet(a=[1], b=[2]), r"lacks a picture's bytes .* and a caption .*picture_column=.* and .*caption_column="),
        (
            all_of(files("0.jpg", "1.jpg"), lines("metadata.jsonl", {"file_name": "0.jpg", "label": 3})),
            r"are file_name, label",
        ),
        (all_of(files("0.jpg", "1.jpg"), lines("metadata.jsonl", {"pic": "0.jpg", "text": "x"})), r"are pic, text"),
        (files("dog/0.jpg", "cat/1.jpg"), r"no captioned pictures .*it holds 2 \.jpg"),
        (lambda folder: (folder / "images.zip").write_bytes(b"PK"), r"it holds 1 \.zip; unpack the archives"),
        (lambda folder: (folder / "README.md").write_text("x"), r"it holds 1 \.md"),
        (lambda folder: None, r"no captioned pictures"),
    ],
    ids=[
        "urls",
        "laion",
        "labels",
        "two pictures",
        "neither",
        "labels in a list",
        "no path",
        "classes",
        "zip",
        "readme",
        "empty",
    ],
)
def test_what_cannot_be_read_is_one_sentence(write: Write, message: str, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(StageError, match=rf"^filter\.pictures_folder: .*{message}") as caught:
        find_layout(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../secret.png", "a/../../secret.png", "C:\\secret.png", "missing.png", ""]
)
def test_a_list_reads_no_file_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(scene(3)))
    (tmp_path / "data").mkdir()
    all_of(files("0.jpg", "1.jpg"), lines("metadata.jsonl", *ROWS, {"file_name": name, "text": "a secret"}))(
        tmp_path / "data"
    )
    assert {row["caption"] for row in adopted(tmp_path / "data", tmp_path / "adopted")} == set(CAPTIONS)


def test_a_list_may_name_files_inside_by_their_whole_path(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    all_of(
        files("0.jpg", "1.jpg"),
        lines("metadata.jsonl", *({**row, "file_name": str(data / row["file_name"])} for row in ROWS)),
    )(data)
    assert len(adopted(data, tmp_path / "adopted")) == 2


@pytest.mark.parametrize(
    "write",
    [
        text("metadata.csv", 'file_name,text\r\n0.jpg,"one\ntwo"\r\n1.jpg,"a; b | c"\r\n'),
        text(
            "metadata.jsonl",
            '{"file_name": "0.jpg", "text": "one\\ntwo"}\r\n{"file_name": "1.jpg", "text": "a; b | c"}',
        ),
        text(
            "metadata.json", '[{"file_name": "0.jpg", "text": "one\\ntwo"}, {"file_name": "1.jpg", "text": "a; b | c"}]'
        ),
    ],
    ids=["csv", "jsonl", "json"],
)
def test_captions_with_line_ends_and_delimiters(write: Write, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    all_of(files("0.jpg", "1.jpg"), write)(tmp_path / "data")
    assert {row["caption"] for row in adopted(tmp_path / "data", tmp_path / "adopted")} == {"one\ntwo", "a; b | c"}


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_line_of_json_ends_with_a_line_feed_only(end: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = "\n".join(json.dumps({**row, "text": f"a{end}b {row['text']}"}, ensure_ascii=False) for row in ROWS)
    all_of(files("0.jpg", "1.jpg"), text("metadata.jsonl", rows))(tmp_path / "data")
    found = {row["caption"] for row in adopted(tmp_path / "data", tmp_path / "adopted")}
    assert found == {f"a{end}b {caption}" for caption in CAPTIONS}


def test_a_list_in_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    files("0.jpg", "1.jpg")(tmp_path)
    (tmp_path / "metadata.csv").write_bytes("file_name,text\n0.jpg,ein Kätzchen\n".encode("cp1252"))
    with pytest.raises(StageError, match=r"metadata\.csv is no text that can be read: .*; save it as UTF-8"):
        find_layout(tmp_path)


def test_a_layout_reaches_the_workers(tmp_path: Path) -> None:
    for name in ("image and text", "img2dataset", "imagefolder, jsonl", "texts beside pictures"):
        (tmp_path / name).mkdir()
        LAYOUTS[name](tmp_path / name)
        layout = pickle.loads(pickle.dumps(find_layout(tmp_path / name, Columns(caption=None))))
        assert all(list(layout.read(file, "x")) for file in layout.files)


# The hub


def fill_cache(cache: Path, name: str, write: Write) -> None:
    """As the hub's own code lays it out."""
    folder = cache / f"datasets--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    plain, snapshot = cache / "plain", folder / "snapshots" / "c0ffee"
    plain.mkdir()
    write(plain)
    (folder / "blobs").mkdir()
    for number, file in enumerate(file for file in sorted(plain.rglob("*")) if file.is_file()):
        blob, link = folder / "blobs" / str(number), snapshot / file.relative_to(plain)
        blob.write_bytes(file.read_bytes())
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a machine without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("layout", ["image and text", "img2dataset", "imagefolder with a split"])
def test_a_dataset_in_the_hubs_cache(layout: str, hub_cache: Path, tmp_path: Path) -> None:
    fill_cache(hub_cache, "someone/cups", LAYOUTS[layout])
    rows = adopted(hub_dataset("someone/cups"), tmp_path / "adopted")
    assert {row["caption"] for row in rows} == set(CAPTIONS)


@pytest.mark.parametrize("name", ["someone/bowls", "some..one/bowls"])
def test_a_dataset_that_is_not_there(name: str, hub_cache: Path) -> None:
    with pytest.raises(StageError, match=rf"^filter\.pictures_folder: {name} is neither a folder here nor"):
        hub_dataset(name)


@pytest.mark.parametrize(
    ("source", "is_id"),
    [
        ("someone/cups", True),
        ("a.b/c-d_e", True),
        ("/data/cups", False),
        ("s3://a/b", False),
        ("cups", False),
        ("a/b/c", False),
    ],
)
def test_what_names_a_dataset_of_the_hub(source: str, is_id: bool) -> None:
    assert is_hub_id(source) == is_id
