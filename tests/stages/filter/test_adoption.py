"""Import of the folders of other tools: every layout, damaged files, and unsuitable folders."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.contract import StageError
from stages.data.datasets import read_dataset
from stages.data.schemas import REJECTED, SAMPLES, content_id
from stages.filter import stage as filter_stage
from stages.filter.adoption import adopt_file
from stages.filter.foreign_rows import CAPTION_NAMES
from stages.filter.layouts import find_layout
from stages.filter.tar_files import read_tar
from stages.storage import name_below
from tests.support.contexts import make_context
from tests.support.hostile_web import bodies
from tests.support.picture_files import encode, png, scene

BODIES = bodies()
GOOD = encode(scene(1))

#: Caption, picture, and the reason of the row ("" for a sample).
ROWS: list[tuple[str | None, bytes | None, str]] = [
    ("a cup", GOOD, ""),
    ("чашка \x1b[31m", png(scene(2)), ""),
    ("a turned cup", BODIES["turned"][1], ""),
    ("a clear cup", BODIES["rgba"][1], ""),
    ("a deep grey cup", BODIES["grey_16"][1], ""),
    ("a moving cup", BODIES["moving_gif"][1], ""),
    ("nothing", None, "no_picture"),
    (None, GOOD, "no_caption"),
    (" \n", GOOD, "no_caption"),
    ("half a \x00 cup", GOOD, "caption_encoding"),
    ("no picture", b"\x80\x04\x95cos\nsystem\n(S'false'\ntR.", "undecodable"),
    ("a bomb", BODIES["bomb_png"][1], "undecodable"),
    ("another", BODIES["bomb_webp"][1], "undecodable"),
    ("half", BODIES["cut_png"][1], "undecodable"),
    ("words " * 200_000, GOOD, ""),
]


def write_tar(folder: Path) -> None:
    """A webdataset with additional files, which must be ignored."""
    with tarfile.open(folder / "00000.tar", "w") as archive:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        for number, (caption, picture, _) in enumerate(ROWS):
            add(f"a.folder/{number:05d}.pkl", b"cos\nsystem\n(S'false'\ntR.")
            if picture is not None:
                add(f"a.folder/{number:05d}.jpg", picture)
            if caption is not None:
                add(f"a.folder/{number:05d}.txt", caption.encode())
        link = tarfile.TarInfo("a.folder/99999.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


def hugging_face_table() -> pa.Table:
    """As `datasets` stores an image and a text feature."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = [{"bytes": picture, "path": "/etc/passwd"} for _, picture, _ in ROWS]
    return pa.table({"image": pa.array(pictures, image), "text": pa.array([caption for caption, *_ in ROWS])})


def write_saved_to_disk(folder: Path) -> None:
    """`DatasetDict.save_to_disk` with one split."""
    split = folder / "train"
    split.mkdir()
    table = hugging_face_table()
    with (
        pa.OSFile(str(split / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=5)
    (split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (split / "cache-0123.arrow").write_bytes(b"of an earlier map")
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')


def write_hugging_face_parquet(folder: Path) -> None:
    pq.write_table(hugging_face_table(), folder / "train-00000-of-00001.parquet", row_group_size=4)


def write_bytes_column(folder: Path) -> None:
    columns = {"caption": [caption for caption, *_ in ROWS], "jpg": [picture for _, picture, _ in ROWS]}
    pq.write_table(pa.table(columns), folder / "00000.parquet")


LAYOUTS: list[Callable[[Path], None]] = [write_tar, write_saved_to_disk, write_hugging_face_parquet, write_bytes_column]


def adopt_all(source: Path, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The samples and the rejected rows, in this process."""
    layout = find_layout(source)
    for number in range(len(layout.files)):
        adopt_file(layout, number, source, folder)
    return read_dataset(folder / "samples", SAMPLES).to_pylist(), read_dataset(
        folder / "rejected", REJECTED
    ).to_pylist()


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_row_of_every_layout_is_imported_or_rejected(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source")
    samples, rejected = adopt_all(tmp_path / "source", tmp_path / "adopted")
    expected = Counter(reason for *_, reason in ROWS)
    assert Counter(row["reason"] for row in rejected) | {"": len(samples)} == expected
    assert [row["caption"] for row in samples] == [caption for caption, _, reason in ROWS if not reason]
    for row in samples:
        with Image.open(io.BytesIO(row["picture"])) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (row["width"], row["height"]))
        assert row["sample_id"] == content_id(row["url"], row["caption"])
        assert (row["original_width"], row["unsafe"], row["language"]) == (row["width"], None, None)
    assert samples[0]["picture"] == GOOD
    assert (samples[2]["width"], samples[2]["height"]) == (90, 120)
    with Image.open(io.BytesIO(samples[3]["picture"])) as clear, Image.open(io.BytesIO(samples[4]["picture"])) as grey:
        assert clear.size == (120, 90)
        assert np.abs(np.asarray(grey, np.int16)[50, 50] - 128).max() < 3
    assert len({row["sample_id"] for row in samples + rejected}) == len(ROWS)
    details = {row["caption"]: row["detail"] for row in rejected}
    assert details["a bomb"].startswith("too_many_pixels")
    assert details["another"] == "too_many_pixels: 16384 x 16384 > 64000000"
    assert details["no picture"].startswith("wrong_type")


@pytest.mark.parametrize("writer", ["WebDatasetSampleWriter", "ParquetSampleWriter"])
def test_the_output_of_img2dataset_keeps_its_urls_scores_and_sizes(writer: str, tmp_path: Path) -> None:
    from img2dataset import writer as writers

    fields = dict.fromkeys(("url", "caption", "key", "status", "error_message"), pa.string())
    fields |= dict.fromkeys(("width", "height", "original_width", "original_height"), pa.int32())
    fields |= {"punsafe": pa.float64(), "AESTHETIC_SCORE": pa.float64(), "LANGUAGE": pa.string()}
    (tmp_path / "source").mkdir()
    out = getattr(writers, writer)(0, str(tmp_path / "source"), True, 5, pa.schema(list(fields.items())), "jpg")
    common: dict[str, Any] = {
        "url": "http://h/1.jpg",
        "status": "success",
        "error_message": None,
        "width": 64,
        "height": 64,
    }
    common |= {"original_width": 640, "original_height": 480, "punsafe": 0.25, "AESTHETIC_SCORE": 5.5, "LANGUAGE": "en"}
    out.write(GOOD, "000000001", "a cup", common | {"key": "000000001", "caption": "a cup"})
    lost = dict.fromkeys(("width", "height", "original_width", "original_height"))
    lost |= {"url": "http://h/2.jpg", "status": "failed_to_download", "error_message": "HTTP Error 404"}
    out.write(None, "000000002", "gone", common | lost | {"key": "000000002", "caption": "gone"})
    out.close()
    samples, rejected = adopt_all(tmp_path / "source", tmp_path / "adopted")
    (row,) = samples
    names = ("url", "caption", "picture", "unsafe", "aesthetic", "similarity", "language")
    assert [row[name] for name in names] == ["http://h/1.jpg", "a cup", GOOD, 0.25, 5.5, None, "en"]
    assert [row[key] for key in ("width", "height", "original_width", "original_height")] == [64, 64, 640, 480]
    assert row["sample_id"] == content_id("http://h/1.jpg", "a cup")
    reasons = [(row["url"], row["reason"], row["detail"]) for row in rejected]  # a tar file has no row for it
    failed = [("http://h/2.jpg", "no_picture", "failed_to_download: HTTP Error 404")]
    assert reasons == (failed if writer == "ParquetSampleWriter" else [])


@pytest.mark.parametrize("write", LAYOUTS)
def test_the_rest_of_a_damaged_file_is_one_row(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source")
    (file,) = find_layout(tmp_path / "source").files
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    intact = file.with_name(f"z{file.name}")
    intact.write_bytes(whole)
    samples, rejected = adopt_all(tmp_path / "source", tmp_path / "adopted")
    (broken,) = [row for row in rejected if row["reason"] == "unreadable"]
    done = int(broken["detail"].removeprefix("after ").split(" ")[0])
    assert len(samples) + len(rejected) == done + 1 + len(ROWS)
    assert name_below(file, tmp_path / "source") in broken["url"]


def test_odd_numbers_and_damaged_fields_are_handled(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"caption": "a cup", "punsafe": 10**400, "AESTHETIC_SCORE": "5", "original_width": -1}
    fields |= {"similarity": "high", "original_height": "480.0", "url": "http://h/\ud800", "language": "e\ufffd"}
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, data in {"1.jpg": GOOD, "1.json": json.dumps(fields).encode(), "2.jpg": GOOD, "2.json": b"{"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (row,), (rejected,) = adopt_all(tmp_path, tmp_path / "adopted")
    names = ("unsafe", "aesthetic", "similarity", "original_width", "original_height", "url", "language")
    assert [row[name] for name in names] == [None, 5, None, 64, 480, "0.tar#1", None]
    assert (rejected["url"], rejected["reason"]) == ("0.tar#2", "no_caption")


def test_an_unsuitable_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"there is no folder .*/missing"):
        find_layout(tmp_path / "missing")
    (tmp_path / "picture.jpg").write_bytes(GOOD)
    with pytest.raises(StageError, match=r"no captioned pictures .*: no \*.tar.* it holds 1 \.jpg"):
        find_layout(tmp_path)
    pq.write_table(pa.table({"URL": ["http://h/1"], "TEXT": ["a cup"]}), tmp_path / "urls.parquet")
    with pytest.raises(
        StageError, match=r"lacks a picture's bytes \(.*\); its columns are URL, TEXT: .*ingest"
    ) as caught:
        find_layout(tmp_path)
    assert "\n" not in str(caught.value)
    two = {"text": ["a cup"], "before": [b"1"], "after": [b"2"]}
    pq.write_table(pa.table(two), tmp_path / "urls.parquet")
    with pytest.raises(StageError, match="lacks a picture's bytes"):
        find_layout(tmp_path)
    pq.write_table(pa.table({"image": [b"1"], "caption": [7]}), tmp_path / "urls.parquet")
    with pytest.raises(StageError, match=r"lacks a caption \(a text column text or caption"):
        find_layout(tmp_path)


@pytest.mark.slow
def test_the_stage_imports_a_folder_of_another_tool(tmp_path: Path, ray_cluster: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_hugging_face_parquet(source)
    pictures = [{"bytes": encode(scene(number)), "path": None} for number in range(10, 30)]
    captions = [f"a photo of cup {number}" for number in range(10, 30)]
    pq.write_table(pa.table({"image": pictures, "text": captions}), source / "validation.parquet")
    no_scores = dict.fromkeys(("min_aesthetic", "min_similarity", "max_unsafe", "max_watermark"))
    context = make_context(tmp_path, filter=no_scores | {"pictures_folder": str(source)})
    result = filter_stage.run(context)
    kept, rejected = (
        read_dataset(context.output / "samples", SAMPLES),
        read_dataset(context.output / "rejected", REJECTED),
    )
    assert set(captions) <= set(kept["caption"].to_pylist())
    assert result.rows == {"samples": kept.num_rows, "rejected": rejected.num_rows}
    assert kept.num_rows + rejected.num_rows == len(ROWS) + 20
    found = Counter(rejected["reason"].to_pylist())
    assert {reason: found[reason] for reason in ("no_picture", "no_caption")} == {"no_picture": 1, "no_caption": 2}
    assert result.metrics == {f"rejected_{reason}": count for reason, count in found.items()}
    with pytest.raises(StageError, match=r"filter.max_unsafe, .* need 'unsafe'"):
        filter_stage.run(make_context(tmp_path / "again", filter={"pictures_folder": str(source)}))


@pytest.mark.parametrize(
    "hidden", ["_temporary/0/b.parquet", "._a.parquet", ".cache/b.parquet", "_delta_log/1.parquet", "a/_x/b.parquet"]
)
def test_hidden_files_are_no_data(hidden: str, tmp_path: Path) -> None:
    folder = tmp_path / "_downloads"
    for name in ("a.parquet", hidden):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    assert find_layout(folder).files == [folder / "a.parquet"]


def tar_of(file: Path, members: dict[bytes, bytes]) -> None:
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(os.fsdecode(name))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_hidden_members_of_an_archive_are_no_data(tmp_path: Path) -> None:
    picture = {b"0.txt": b"a red cup", b"0.jpg": GOOD}
    hidden = {b"._0.txt": b"Mac OS X", b"._0.jpg": b"Mac OS X", b"__MACOSX/1.jpg": GOOD, b"a/.b/2.txt": b"a cup"}
    tar_of(tmp_path / "0.tar", hidden | picture)
    assert [row.origin for row in read_tar(tmp_path / "0.tar", "0.tar")] == ["0.tar#0"]


def test_members_whose_names_are_not_text_stay_apart(tmp_path: Path) -> None:
    members = {b"caf\xe9.jpg": GOOD, b"caf\xe9.txt": b"one", b"caf\xe8.jpg": GOOD, b"caf\xe8.txt": b"two"}
    tar_of(tmp_path / "0.tar", members)
    rows = list(read_tar(tmp_path / "0.tar", "0.tar"))
    assert [row.origin for row in rows] == [r"0.tar#caf\xe9", r"0.tar#caf\xe8"]
    assert [row.fields[CAPTION_NAMES[0]] for row in rows] == ["one", "two"]


def test_files_whose_names_are_not_text_stay_apart(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (b"caf\xe8.tar", b"caf\xe9.tar"):
        tar_of(source / os.fsdecode(name), {b"0.jpg": GOOD, b"0.txt": b"a red cup"})
    layout = find_layout(source)
    for number in range(2):
        adopt_file(layout, number, source, tmp_path / "out")
    assert len(set(read_dataset(tmp_path / "out" / "samples", SAMPLES)["sample_id"].to_pylist())) == 2
