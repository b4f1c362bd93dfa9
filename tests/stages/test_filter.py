"""The filter: each reason, the duplicates against the obvious search, and the stage on real Ray Data."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import make_context
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages import filter as filter_stage
from stages.config import FilterConfig
from stages.datasets import read_dataset, write_part
from stages.filter import check_scores, group_files, nothing_left
from stages.filter.duplicates import MAX_BITS, MAX_COLOUR_DIFFERENCE, find_duplicates, signature
from stages.filter.rules import rejection
from stages.schemas import REJECTED, SAMPLES
from stages.stage import StageError


def encode(pixels: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def scene(seed: int, side: int = 64) -> Image.Image:
    """A picture with large and small shapes, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def sample(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "sample_id": f"{number:04d}",
        "url": f"http://host/{number}.jpg",
        "caption": "a photo of a mug",
        "picture": encode(scene(number)),
        "width": 64,
        "height": 64,
        "original_width": 80,
        "original_height": 80,
        "similarity": 0.3,
        "unsafe": 0.1,
        "watermark": 0.2,
        "aesthetic": 5.5,
    }
    return row | changes


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({}, None, None),
        ({"original_width": 47}, "side", "47 < 48"),
        ({"original_width": 161, "width": 161}, "aspect_ratio", "2.013 > 2"),
        ({"original_width": 160}, None, None),
        ({"unsafe": 0.51}, "unsafe", "0.51 > 0.5"),
        ({"watermark": 0.9}, "watermark", "0.9 > 0.8"),
        ({"similarity": 0.25}, "similarity", "0.25 < 0.26"),
        ({"aesthetic": 4.999}, "aesthetic", "4.999 < 5"),
        ({"aesthetic": 5.0}, None, None),
        ({"aesthetic": None}, "aesthetic_missing", "the row has no such score"),
        ({"aesthetic": float("nan")}, "aesthetic_missing", "the row has no such score"),
        ({"caption": "mug photo"}, "caption_words", "2 < 3"),
        ({"caption": "mug", "original_height": 3, "aesthetic": None}, "side", "3 < 48"),
    ],
)
def test_the_first_failed_threshold_is_the_reason(
    changes: dict[str, Any], reason: str | None, detail: str | None
) -> None:
    expected = None if reason is None else (reason, detail)
    assert rejection(sample(1, **changes), FilterConfig()) == expected


@given(
    score=st.none() | st.floats(0, 10),
    minimum=st.none() | st.floats(0, 10),
    side=st.integers(1, 100),
    smallest=st.none() | st.integers(1, 100),
)
def test_thresholds_against_a_plain_statement(
    score: float | None, minimum: float | None, side: int, smallest: int | None
) -> None:
    config = FilterConfig(min_aesthetic=minimum, min_side=smallest, max_aspect_ratio=None)
    row = sample(1, aesthetic=score, original_width=side)
    passes_side = smallest is None or min(side, 80) >= smallest
    passes_score = minimum is None or (score is not None and score >= minimum)
    assert (rejection(row, config) is None) == (passes_side and passes_score)


def naive_duplicates(signatures: dict[str, bytes]) -> dict[str, str]:
    """All against all that were kept."""
    kept: list[str] = []
    rejected: dict[str, str] = {}
    for key in sorted(signatures):
        mine = signatures[key]
        for other in kept:
            theirs = signatures[other]
            if mine[:32] == theirs[:32]:
                rejected[key] = "duplicate"
                break
        else:
            for other in kept:
                theirs = signatures[other]
                bits = sum(bin(a ^ b).count("1") for a, b in zip(mine[32:40], theirs[32:40], strict=True))
                colours = [abs(a - b) for a, b in zip(mine[40:], theirs[40:], strict=True)]
                if bits <= MAX_BITS and sum(colours) / len(colours) <= MAX_COLOUR_DIFFERENCE:
                    rejected[key] = "near_duplicate"
                    break
            else:
                kept.append(key)
    return rejected


# Few values, so that near ones are frequent.
signatures_strategy = st.dictionaries(
    st.text("abc", min_size=1, max_size=4),
    st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1).map(lambda n: n & 0x0101_0101_0101_0F0F), st.integers(0, 9)),
    max_size=25,
).map(
    lambda drawn: {
        key: bytes([a]) * 32 + bits.to_bytes(8) + bytes([colour]) * 192 for key, (a, bits, colour) in drawn.items()
    }
)


@settings(max_examples=100, deadline=None)
@given(signatures=signatures_strategy)
def test_duplicates_are_those_of_the_obvious_search(signatures: dict[str, bytes]) -> None:
    assert {key: reason for key, (reason, _) in find_duplicates(signatures).items()} == naive_duplicates(signatures)


def test_copies_are_recognised_and_other_pictures_are_not() -> None:
    pictures = {f"{seed:02d}": encode(scene(seed)) for seed in range(40)}
    pictures["90 same"] = pictures["05"]
    pictures["91 resized"] = encode(scene(7).resize((72, 72), Image.Resampling.BICUBIC), quality=75)
    pictures["92 compressed"] = encode(scene(8), quality=50)
    red, blue = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "white")
    red.paste("#d02020", (16, 16, 48, 48))
    blue.paste("#2040d0", (16, 16, 48, 48))
    pictures |= {"93 red": encode(red), "94 blue": encode(blue)}
    signatures = {key: value for key, picture in pictures.items() if isinstance(value := signature(picture), bytes)}
    assert len(signatures) == len(pictures)
    found = find_duplicates(signatures)
    assert {key: detail.split()[-1] for key, (_, detail) in found.items()} == {
        "90 same": "05", "91 resized": "07", "92 compressed": "08",
    }  # fmt: skip
    assert found["90 same"][0] == "duplicate"
    assert found["91 resized"][0] == "near_duplicate"


def test_what_is_no_picture_has_no_signature() -> None:
    whole = encode(scene(1))
    assert "truncated" in str(signature(whole[: len(whole) // 2]))
    assert "cannot identify" in str(signature(b"text"))


def test_a_threshold_on_a_score_that_nobody_has_names_column_and_setting() -> None:
    rows = pa.Table.from_pylist([sample(1, aesthetic=None), sample(2, aesthetic=None)], schema=SAMPLES)
    with pytest.raises(StageError, match=r"'AESTHETIC_SCORE'.*--set filter.min_aesthetic=null"):
        check_scores(rows, FilterConfig())
    check_scores(rows, FilterConfig(min_aesthetic=None))


def test_nothing_left_says_which_filter_took_how_many() -> None:
    text = nothing_left(9, {"side": 2, "aesthetic": 7})
    assert "none of 9 samples: aesthetic took 7, side took 2" in text
    assert "--set filter.min_aesthetic=" in text


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_files_are_grouped_in_order(sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("parts")
    table = pa.table({"x": pa.array(range(10), pa.int64())})
    for number, size in enumerate(sizes):
        write_part(folder, number, table.slice(0, size), table.schema)
    groups = group_files(sorted(folder.iterdir()), 8)
    assert list(itertools.chain.from_iterable(groups)) == sorted(folder.iterdir())
    counts = [sum(sizes[int(file.stem[-5:])] for file in group) for group in groups]
    assert all(count >= 8 for count in counts[:-1])


@pytest.mark.slow
def test_the_stage_keeps_order_gives_every_row_one_place_and_does_not_depend_on_the_files(
    tmp_path: Path, ray_cluster: str
) -> None:
    rows = [sample(number) for number in range(12)]
    rows[2] |= {"aesthetic": 4.0}
    rows[3] |= {"picture": rows[3]["picture"][:300]}
    rows[5] |= {"picture": rows[1]["picture"]}
    rows[7] |= {"picture": rows[2]["picture"]}  # the original of this copy has been rejected, so the copy stays
    outputs = []
    for name, parts in {"one": [rows], "three": [rows[:5], rows[5:6], rows[6:]]}.items():
        folder = tmp_path / name / "ingest"
        for number, part in enumerate(parts):
            write_part(folder / "samples", number, pa.Table.from_pylist(part, schema=SAMPLES), SAMPLES)
        context = make_context(tmp_path / name, inputs={"ingest": folder})
        result = filter_stage.run(context)
        assert result.rows == {"samples": 9, "rejected": 3}
        assert result.metrics == {"rejected_aesthetic": 1, "rejected_duplicate": 1, "rejected_undecodable": 1}
        outputs.append(
            [read_dataset(context.output / "samples", SAMPLES), read_dataset(context.output / "rejected", REJECTED)]
        )
    assert outputs[0] == outputs[1]
    samples, rejected = outputs[0]
    assert samples.to_pylist() == [row for number, row in enumerate(map(round_scores, rows)) if number not in (2, 3, 5)]
    assert [(row["sample_id"], row["reason"]) for row in rejected.to_pylist()] == [
        ("0002", "aesthetic"), ("0003", "undecodable"), ("0005", "duplicate"),
    ]  # fmt: skip
    empty = make_context(tmp_path / "one", inputs={"ingest": tmp_path / "one" / "ingest"}, filter={"min_aesthetic": 9})
    with pytest.raises(StageError, match="none of 12 samples: aesthetic took 11, undecodable took 1"):
        filter_stage.run(empty)


def round_scores(row: dict[str, Any]) -> dict[str, Any]:
    """Scores are stored in single precision."""
    return {key: float(np.float32(value)) if isinstance(value, float) else value for key, value in row.items()}
