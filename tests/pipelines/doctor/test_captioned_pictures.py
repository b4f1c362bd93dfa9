"""What is said of captioned pictures: of another tool's folder, and of a dataset on the hub."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.doctor.findings import Level
from stages.storage import store_path
from tests.support.doctor_data import about, findings, problems
from tests.support.hub_cache import add_to_hub_cache
from tests.support.picture_files import encode, scene
from tests.support.refusing_hub import Refusal, hub_server, use_hub

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


def test_pictures_in_a_store(bucket: str, settings: list[str]) -> None:
    named = "filter.pictures_folder"
    folder = store_path(f"{bucket}/set")
    (folder / "a.txt").write_bytes(b"a dog on a beach")
    (folder / "a.jpg").write_bytes(JPEG)
    (found,) = about(named, [*settings, f"{named}={bucket}/set"])
    assert found.text == f"{named}: 1 captioned folder in {bucket}/set"


def test_a_store_that_cannot_be_used_hides_no_other_data(bucket: str, settings: list[str]) -> None:
    found = findings([*settings, "filter.pictures_folder=s3://no-such-bucket/set", "multiview.folders=[/none]"])
    texts = [one.text for one in found if one.level is not Level.GOOD]
    assert len(texts) == 2
    assert texts[0].startswith("multiview.folders: ")
    assert texts[1].startswith("filter.pictures_folder: s3://no-such-bucket/set")
