"""Captions in the encodings that other programs write: both stages read them, or reject them with the same reason."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.datasets import read_dataset
from stages.data.schemas import REJECTED, SAMPLES
from stages.filter.adoption import adopt_file
from stages.filter.layouts import find_layout
from stages.ingest.config import IngestConfig
from stages.ingest.metadata import metadata_files
from stages.ingest.url_list import write_url_list
from tests.support.picture_files import encode, scene

PICTURE = encode(scene(1))
TEXT = "a café with “quotes”, 雪の中"

#: Bytes, and the caption that they are; None: rejected.
CAPTIONS: dict[str, tuple[bytes, str | None]] = {
    "utf-8": (TEXT.encode(), TEXT),
    "line end of Windows": (TEXT.encode() + b"\r\n", TEXT + "\r\n"),
    "utf-8 with a mark": (b"\xef\xbb\xbf" + TEXT.encode(), TEXT),
    "two marks": (b"\xef\xbb\xbf\xef\xbb\xbf" + TEXT.encode(), TEXT),
    "a mark inside": ("a\ufeffb".encode(), "a\ufeffb"),
    "utf-16 little endian": (b"\xff\xfe" + TEXT.encode("utf-16-le"), TEXT),
    "utf-16 big endian": (b"\xfe\xff" + TEXT.encode("utf-16-be"), TEXT),
    "utf-32 little endian": (b"\xff\xfe\0\0" + TEXT.encode("utf-32-le"), TEXT),
    "emoji in utf-16": (b"\xff\xfe" + "a cup ☕🏽".encode("utf-16-le"), "a cup ☕🏽"),
    "private use": ("a \ue000 cup".encode(), "a \ue000 cup"),
    "cp1252": ("a café “x”".encode("cp1252"), None),
    "latin-1": ("a café".encode("latin-1"), None),
    "cp1251": ("чашка".encode("cp1251"), None),
    "gb18030": ("桌上的红杯子".encode("gb18030"), None),
    "shift-jis": ("雪の中のカップ".encode("shift-jis"), None),
    "euc-kr": ("빨간 머그잔".encode("euc-kr"), None),
    "utf-16 without a mark": ("a cup".encode("utf-16-le"), None),
    "utf-16 read as latin-1": ("ÿþa\0 \0c\0u\0p\0".encode(), None),
    "utf-16 with half a character": (b"\xff\xfea\0 \0c", None),
    "utf-16 with half a pair": (b"\xff\xfea\0\x3d\xd8b\0", None),
    "utf-8 cut in a character": ("a café".encode()[:-1], None),
    "surrogates in utf-8": (b"a \xed\xa0\xbd\xed\xb8\x80 cup", None),
    "overlong utf-8": (b"a \xc0\xaf cup", None),
    "a replacement character": ("a caf\ufffd".encode(), None),
    "nul at the end": (b"a cup\0", None),
    "nuls": (b"\0\0\0", None),
}


def as_strings(data: bytes) -> pa.Array:
    """As other Parquet writers mark it, who do not check."""
    return pa.Array.from_buffers(pa.string(), 1, pa.array([data]).buffers())


def imported(folder: Path) -> tuple[str | None, str]:
    """The caption and the reason of a folder's only row."""
    layout = find_layout(folder)
    adopt_file(layout, 0, folder, folder / "adopted")
    rows = read_dataset(folder / "adopted" / "samples", SAMPLES).to_pylist()
    rows += read_dataset(folder / "adopted" / "rejected", REJECTED).to_pylist()
    (row,) = rows
    return row["caption"], row.get("reason", "")


def write_tar(file: Path, **members: bytes) -> None:
    with tarfile.open(file, "w") as archive:
        for suffix, data in {"jpg": PICTURE, **members}.items():
            member = tarfile.TarInfo(f"0.{suffix}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("name", CAPTIONS)
def test_caption_files(name: str, tmp_path: Path) -> None:
    data, expected = CAPTIONS[name]
    write_tar(tmp_path / "0.tar", txt=data)
    caption, reason = imported(tmp_path)
    assert reason == ("" if expected else "caption_encoding")
    assert not expected or caption == expected.rstrip()  # the end of a file's line is not the caption's


@pytest.mark.parametrize("kind", ["string", "binary", "category"])
@pytest.mark.parametrize("name", CAPTIONS)
def test_caption_columns_of_both_stages(name: str, kind: str, tmp_path: Path) -> None:
    data, expected = CAPTIONS[name]
    column = pa.array([data]) if kind == "binary" else as_strings(data)
    column = column.dictionary_encode() if kind == "category" else column
    pq.write_table(pa.table({"url": ["http://h/1"], "caption": column, "image": [PICTURE]}), tmp_path / "0.parquet")
    caption, reason = imported(tmp_path)
    assert reason == ("" if expected else "caption_encoding")
    assert caption == expected or not expected
    sound = pa.table({"url": ["http://h/2"], "caption": ["a cup"]})
    (tmp_path / "metadata").mkdir()
    pq.write_table(pa.table({"url": ["http://h/1"], "caption": column}), tmp_path / "metadata" / "0.parquet")
    pq.write_table(sound, tmp_path / "metadata" / "1.parquet")
    urls = write_url_list(metadata_files(str(tmp_path / "metadata")), IngestConfig(), tmp_path / "list")
    listed = {row["url"]: row["caption"] for row in pq.read_table(urls.file).to_pylist()}
    assert listed == {"http://h/2": "a cup"} | ({"http://h/1": expected} if expected else {})
    assert dict(urls.rejected) == ({} if expected else {"caption_encoding": 1})


JSON = json.dumps({"url": "http://h/1", "caption": TEXT}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (JSON.encode(), TEXT),
        (json.dumps({"caption": TEXT}).encode(), TEXT),
        (JSON.encode("utf-8-sig"), TEXT),
        (JSON.encode("utf-16"), TEXT),
        (JSON.encode("utf-16-le"), TEXT),
        (JSON.encode("utf-16-be"), TEXT),
        (JSON.encode("utf-32"), TEXT),
        (json.dumps({"caption": "\ufeffa cup"}).encode(), "a cup"),
        (json.dumps({"caption": "a \U0001f600 cup"}).encode(), "a \U0001f600 cup"),
        ('{"url": "http://h/café", "caption": "a cup"}'.encode("cp1252"), "a cup"),
        ('{"caption": "a café"}'.encode("cp1252"), None),
        ('{"caption": "雪の中"}'.encode("euc-jp"), None),
        (b'{"caption": "\\ud83d cup"}', None),
        (b'{"caption": "\\ude00\\ud83d cup"}', None),
        (b'{"caption": "a \\u0000 cup"}', None),
        (b'{"caption": "a \\ufffd cup"}', None),
        ('{"caption": "ソファ"}'.encode("shift-jis"), None),
        ('{"caption": "a cup", "url": "ソファ"}'.encode("shift-jis"), None),
        (b'{"caption": "a caf\xc3"}', None),
    ],
)
def test_captions_in_json(data: bytes, expected: str | None, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", json=data)
    caption, reason = imported(tmp_path)
    assert (caption, reason) == ((expected, "") if expected else (caption, "caption_encoding"))
