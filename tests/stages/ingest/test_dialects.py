"""Lists of URLs as public sets have them; and tables that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contract import StageError
from stages.ingest.config import IngestConfig
from stages.ingest.metadata import count_rows, metadata_files, read_tables

#: Columns as public sets of URLs have them, and what is read: URL, caption, similarity, unsafe, watermark, aesthetic.
_R = ("http://h/1.jpg", "a red cup", 0.25, 0.125, 0.5, 6.0)
DIALECTS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "re-laion": (
        {
            "url": _R[0],
            "caption": _R[1],
            "pwatermark": 0.5,
            "punsafe": 0.125,
            "similarity": 0.25,
            "hash": 7,
            "key": "k",
        },
        (*_R[:5], None),
    ),
    "laion-2b-en": (
        {
            "SAMPLE_ID": 1.0,
            "URL": _R[0],
            "TEXT": _R[1],
            "HEIGHT": 300,
            "WIDTH": 300,
            "LICENSE": "?",
            "NSFW": "UNLIKELY",
            "similarity": 0.25,
        },
        (*_R[:3], None, None, None),
    ),
    "laion-2b-multi": (
        {"URL": _R[0], "TEXT": _R[1], "LANGUAGE": "en", "similarity": 0.25, "punsafe": 0.125, "pwatermark": 0.5},
        (*_R[:5], None),
    ),
    "laion-high-resolution": (
        {"URL": _R[0], "TEXT": _R[1], "WIDTH": 1024, "HEIGHT": 1024, "similarity": 0.25, "hash": 1},
        (*_R[:3], None, None, None),
    ),
    "laion-aesthetic": (
        {"URL": _R[0], "TEXT": _R[1], "AESTHETIC_SCORE": 6.0, "pwatermark": 0.5, "punsafe": 0.125, "hash": 1},
        (*_R[:2], None, 0.125, 0.5, 6.0),
    ),
    "laion-art": (
        {"URL": _R[0], "TEXT": _R[1], "aesthetic": 6.0, "pwatermark": 0.5, "punsafe": 0.125, "similarity": 0.25},
        _R,
    ),
    "laion-400m": (
        {"URL": _R[0], "TEXT": _R[1], "NSFW": "NSFW", "similarity": 0.25, "LICENSE": "?"},
        (*_R[:3], None, None, None),
    ),
    "laion-coco": (
        {"URL": _R[0], "TEXT": _R[1], "top_caption": "x", "all_captions": ["x"], "similarity": 0.25},
        (*_R[:3], None, None, None),
    ),
    "coyo-700m": (
        {
            "url": _R[0],
            "text": _R[1],
            "width": 300,
            "height": 300,
            "clip_similarity_vitb32": 0.25,
            "watermark_score": 0.5,
            "nsfw_score_opennsfw2": 0.125,
            "aesthetic_score_laion_v2": 6.0,
        },
        _R,
    ),
    "datacomp": (
        {
            "uid": "u",
            "url": _R[0],
            "text": _R[1],
            "original_width": 300,
            "original_height": 300,
            "clip_b32_similarity_score": 0.25,
        },
        (*_R[:3], None, None, None),
    ),
    "recap-datacomp": ({"url": _R[0], "re_caption": _R[1], "org_caption": "x"}, (*_R[:2], None, None, None, None)),
    "conceptual captions of the hub": ({"image_url": _R[0], "caption": _R[1]}, (*_R[:2], None, None, None, None)),
    "pd12m": (
        {"id": "i", "url": _R[0], "caption": _R[1], "width": 900, "height": 900, "mime_type": "image/jpeg"},
        (*_R[:2], None, None, None, None),
    ),
    "img2dataset's list": (
        {"url": _R[0], "caption": _R[1], "key": "0", "status": "success", "md5": "x"},
        (*_R[:2], None, None, None, None),
    ),
    "capital letters": (
        {"Url": _R[0], "Caption": _R[1], "PWATERMARK": 0.5, "PunSafe": 0.125},
        (*_R[:2], None, 0.125, 0.5, None),
    ),
    "alt texts": ({"img_url": _R[0], "alt": _R[1]}, (*_R[:2], None, None, None, None)),
    "numbers as text": (
        {"URL": _R[0], "TEXT": _R[1], "punsafe": "0.125", "similarity": " 0.25 "},
        (*_R[:4], None, None),
    ),
    "missing scores": (
        {"URL": _R[0], "TEXT": _R[1], "punsafe": None, "pwatermark": "nan"},
        (*_R[:2], None, None, None, None),
    ),
    "another order": ({"similarity": 0.25, "caption": _R[1], "width": 300, "url": _R[0]}, (*_R[:3], None, None, None)),
    "a mark at the start": ({"\ufeffURL": _R[0], "TEXT": _R[1]}, (*_R[:2], None, None, None, None)),
}


READ = ("url", "caption", "similarity", "unsafe", "watermark", "aesthetic")


@pytest.mark.parametrize(("row", "expected"), DIALECTS.values(), ids=DIALECTS)
def test_columns_of_public_sets(row: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "m.parquet")
    (table,) = read_tables(metadata_files(tmp_path), IngestConfig())
    found = table.to_pylist()[0]
    assert tuple(None if found[name] != found[name] else found[name] for name in READ) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": {"bytes": b"", "path": ""}, "text": "x"}, "its pictures are inside.*--set filter.pictures_folder="),
        ({"jpg": b"", "caption": "x"}, "its pictures are inside.*--set filter.pictures_folder="),
        ({"link": "http://h", "text": "x"}, "columns are link, text: .*--set ingest.url_column="),
        ({"url": "http://h", "label": 3}, "columns are url, label: .*--set ingest.caption_column="),
        ({"hash": b"", "text": "x"}, "--set ingest.url_column="),
    ],
)
def test_a_table_without_our_columns_is_one_sentence(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "m.parquet")
    with pytest.raises(StageError, match=rf"^ingest\.metadata: .*{message}") as caught:
        list(read_tables(metadata_files(tmp_path), IngestConfig()))
    assert "\n" not in str(caught.value)


def urls_of(folder: Path) -> list[tuple[str | None, str | None, float | None]]:
    found = metadata_files(folder)
    tables = [table.to_pylist() for table in read_tables(found, IngestConfig())]
    rows = [(row["url"], row["caption"], row["unsafe"]) for table in tables for row in table]
    assert count_rows(found) == len(rows)
    return rows


TEXTS: dict[str, tuple[str, bytes, list[tuple[str | None, str | None, float | None]]]] = {
    "cc12m": (
        "cc12m.tsv",
        b'http://h/1\ta "red cup\nhttp://h/2\ta, b\n',
        [("http://h/1", 'a "red cup', None), ("http://h/2", "a, b", None)],
    ),
    "cc3m": (
        "Train_GCC-training.tsv",
        b"a cup\thttp://h/1\na bowl\thttp://h/2\n",
        [("http://h/1", "a cup", None), ("http://h/2", "a bowl", None)],
    ),
    "a head": ("m.tsv", b"url\tcaption\nhttp://h/1\ta cup\n", [("http://h/1", "a cup", None)]),
    "csv": (
        "m.csv",
        b'URL,TEXT,punsafe\nhttp://h/1,"a, b",0.5\nhttp://h/2,c,\n',
        [("http://h/1", "a, b", 0.5), ("http://h/2", "c", None)],
    ),
    "quotes": ("m.csv", b'url,caption\nhttp://h/1,"a ""b"" c"\n', [("http://h/1", 'a "b" c', None)]),
    "line ends in a caption": ("m.csv", b'url,caption\nhttp://h/1,"a\nb"\n', [("http://h/1", "a\nb", None)]),
    "carriage returns": ("m.csv", b"url,caption\r\nhttp://h/1,a\r\n", [("http://h/1", "a", None)]),
    "no last line end": ("m.csv", b"url,caption\nhttp://h/1,a", [("http://h/1", "a", None)]),
    "byte order mark": ("m.csv", b"\xef\xbb\xbfurl,caption\nhttp://h/1,a\n", [("http://h/1", "a", None)]),
    "no head in csv": ("m.csv", b"http://h/1,a\n", [("http://h/1", "a", None)]),
    "jsonl": (
        "m.jsonl",
        b'{"url": "http://h/1", "caption": "a \\u00e9", "punsafe": 0.5}\n\n{"caption": "b", "url": "http://h/2"}\n',
        [("http://h/1", "a é", 0.5), ("http://h/2", "b", None)],
    ),
    "other columns": ("m.jsonl", b'{"url": "http://h/1", "tags": [1], "TEXT": "a"}', [("http://h/1", "a", None)]),
    "not utf-8": ("m.tsv", b"http://h/1\tcaf\xe9\n", [("http://h/1", "caf\ufffd", None)]),
    "parquet wins": ("m.csv", b"url,caption\nhttp://h/1,a\n", [("http://h/9", "of parquet", None)]),
}


@pytest.mark.parametrize(("name", "data", "expected"), TEXTS.values(), ids=TEXTS)
def test_tables_in_text(name: str, data: bytes, expected: list[Any], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    if expected[0][0] == "http://h/9":
        pq.write_table(pa.table({"url": ["http://h/9"], "caption": ["of parquet"]}), tmp_path / "m.parquet")
    assert urls_of(tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.csv", b"url,caption\nhttp://h,a,b\n", r"m\.csv is no \.csv table \(.*Expected 2 columns"),
        ("m.jsonl", b'{"url": "http://h", "caption": "x"}\n{\n', r"m\.jsonl is no \.jsonl table \(a line is no JSON"),
        ("m.jsonl", b"[1]\n", "a line is no JSON object"),
        ("m.csv", b"link,text\nx,a\n", "columns are link, text: .*url_column"),
        ("m.csv", b"", "m.csv"),
        ("notes.md", b"", r"holds no \*\.parquet, \*\.tsv, \*\.csv, \*\.jsonl; docs/datasets\.md"),
    ],
)
def test_other_files_are_one_sentence(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StageError, match=rf"^ingest\.metadata: .*{message}") as caught:
        urls_of(tmp_path)
    assert "\n" not in str(caught.value)
