"""Lists of URLs as public sets have them; and tables that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contract import StageError
from stages.ingest.config import IngestConfig
from stages.ingest.metadata import metadata_files, read_tables

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


def test_other_formats_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cc12m.tsv").write_text("http://h\tx\n")
    with pytest.raises(StageError, match=r"holds no \*\.parquet file; docs/datasets\.md says how to convert"):
        metadata_files(tmp_path)
