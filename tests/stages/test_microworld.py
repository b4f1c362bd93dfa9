"""The micro world on disk: in the form of LAION and MVImgNet, with the configured defects, and reproducible."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from model.microworld.camera import orbit_pose
from model.microworld.shapes import HELD_OUT_CATEGORIES
from stages.contract import StageError
from stages.data.loopback import serve_folder
from stages.filter.config import FilterConfig
from stages.microworld import stage as microworld
from stages.microworld.config import MicroworldConfig
from stages.microworld.subjects import ALBUM_PICTURES, disjoint_pairs
from stages.microworld.turntables import write_instance
from stages.microworld.web import GROUPS, METADATA, draw_kinds, draw_scores
from stages.multiview.colmap import read_images
from stages.storage import file_records
from tests.support.contexts import make_context

pytestmark = pytest.mark.slow

SMALL = {"pictures": 60, "multiview_instances": 3, "views": 3, "picture_size": 48, "poor_share": 0.2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    context = make_context(folder, microworld=SMALL)
    result = microworld.run(context)
    assert result.rows["metadata"] == 60
    assert result.rows["mvimgnet"] == 9
    return folder / "output"


def test_the_same_seed_gives_the_same_files_and_another_seed_others(world: Path, tmp_path: Path) -> None:
    again = make_context(tmp_path / "again", microworld=SMALL)
    microworld.run(again)
    assert file_records(again.output) == file_records(world)
    other = make_context(tmp_path / "other", microworld=SMALL, run={"seed": 1})
    microworld.run(other)
    assert file_records(other.output) != file_records(world)


def test_metadata_has_laions_columns_and_the_urls_have_the_configured_defects(world: Path) -> None:
    table = pq.read_table(world / "metadata")
    assert table.schema.equals(METADATA)
    site = json.loads((world / "site.json").read_text())
    outcomes: Counter[str] = Counter()
    with serve_folder(world / site["root"]) as base:
        for url in table["URL"].to_pylist():
            try:
                reply = urllib.request.urlopen(url.replace(f"http://127.0.0.1:{site['port']}", base), timeout=5)
                with Image.open(reply) as picture:
                    picture.load()
                outcomes["picture"] += 1
            except urllib.error.HTTPError as error:
                outcomes[str(error.code)] += 1
            except urllib.error.URLError:
                outcomes["refused"] += 1
            except UnidentifiedImageError:
                outcomes["no picture"] += 1
            except OSError:
                outcomes["truncated"] += 1
    assert outcomes["404"] + outcomes["refused"] == round(0.02 * 60)
    assert outcomes["no picture"] + outcomes["truncated"] == round(0.02 * 60)
    assert outcomes["picture"] == 60 - 2


@settings(max_examples=30, deadline=None)
@given(pictures=st.integers(20, 400), seed=st.integers(0, 5))
def test_kinds_follow_the_shares(pictures: int, seed: int) -> None:
    config = MicroworldConfig(pictures=pictures)
    kinds = Counter(draw_kinds(config, np.random.default_rng(seed)))
    assert kinds.total() == pictures
    for group, ways in GROUPS.items():
        counts = [kinds[way] for way in ways]
        assert sum(counts) == round(getattr(config, f"{group}_share") * pictures)
        assert max(counts) - min(counts) <= 1


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["good", "tiny", *GROUPS["poor"]]), seed=st.integers(0, 10_000))
def test_scores_fail_exactly_where_they_should(kind: str, seed: int) -> None:
    scores, thresholds = draw_scores(kind, np.random.default_rng(seed)), FilterConfig()
    failing = {
        "aesthetic": scores.aesthetic < (thresholds.min_aesthetic or 0),
        "similarity": scores.similarity < (thresholds.min_similarity or 0),
        "unsafe": scores.unsafe > (thresholds.max_unsafe or 1),
        "watermark": scores.watermark > (thresholds.max_watermark or 1),
    }
    assert [name for name, fails in failing.items() if fails] == ([kind] if kind in failing else [])


def test_scores_of_good_rows_are_correlated() -> None:
    drawn = [draw_scores("good", np.random.default_rng(seed)) for seed in range(2000)]
    table = np.array([[row.similarity, row.aesthetic, row.unsafe, row.watermark] for row in drawn])
    correlation = np.corrcoef(table.T)
    assert correlation[0, 1] > 0.5
    assert correlation[1, 2] < -0.05
    assert 0.2 < (table[:, 1] >= 6.0).mean() < 0.6  # a stricter threshold leaves some


def test_camera_files_give_back_the_exact_poses(tmp_path: Path, world: Path) -> None:
    from model.microworld.camera import matching_pinhole

    poses = [orbit_pose(yaw, pitch) for yaw, pitch in [(0.3, 0.2), (-0.7, 0.5), (1 / 3, 0.1)]]
    pixels = [np.zeros((8, 8, 3), np.uint8)] * 3
    write_instance(tmp_path / "x", pixels, poses, matching_pinhole(8, 3.0))
    for image, pose in zip(read_images(tmp_path / "x" / "sparse" / "0"), poses, strict=True):
        assert image.rotation == tuple(pose.quaternion.tolist())
        assert image.translation == tuple(pose.translation.tolist())
    instances = list((world / "mvimgnet").glob("*/*"))
    assert len(instances) == 3
    assert all(len(list((folder / "images").glob("*.jpg"))) == 3 for folder in instances)


def test_subjects_are_held_out_listed_and_masked(world: Path) -> None:
    listing = json.loads((world / "subjects" / "subjects.json").read_text())
    assert {entry["category"] for entry in listing} >= set(HELD_OUT_CATEGORIES)
    assert len({entry["subject"] for entry in listing}) == len(listing)
    for entry in listing:
        assert entry["subject"].startswith(f"test-{entry['category']}-")
        assert entry["word"] == ("toy" if entry["category"] in HELD_OUT_CATEGORIES else entry["category"])
        for name in entry["pictures"]:
            file = world / "subjects" / name
            with Image.open(file) as picture, Image.open(file.with_name(f"{file.stem}_mask.png")) as mask:
                assert picture.mode == "RGB"
                assert mask.mode == "L"
                assert picture.size == mask.size == (48, 48)
                assert np.asarray(mask).max() == 255


def test_the_pictures_of_an_album_differ_less_than_the_views_of_a_subject(world: Path) -> None:
    def pixels(names: list[str]) -> np.ndarray:
        return np.stack([np.asarray(Image.open(world / "subjects" / name), dtype=float) for name in names])

    for entry in json.loads((world / "subjects" / "subjects.json").read_text()):
        album, views = pixels(entry["album"]), pixels(entry["pictures"])
        assert len(album) == ALBUM_PICTURES
        assert album.std(axis=0).mean() < 5 < views.std(axis=0).mean()


def test_subjects_are_paired_once_each_and_shown_together(world: Path) -> None:
    folder = world / "subjects"
    words = {entry["subject"]: entry["word"] for entry in json.loads((folder / "subjects.json").read_text())}
    pairs = json.loads((folder / "pairs.json").read_text())
    paired = [name for entry in pairs for name in entry["subjects"]]
    assert len(set(paired)) == len(paired) == 2 * (len(words) // 2)
    for entry in pairs:
        first, second = entry["subjects"]
        assert words[first] != words[second]
        with Image.open(folder / entry["together"]) as picture:
            assert picture.size == (48, 48)


def test_a_subject_without_another_word_is_left_out() -> None:
    assert disjoint_pairs(["toy", "toy", "mug", "car", "toy"]) == [(0, 2), (1, 3)]
    assert disjoint_pairs(["toy", "toy"]) == []


def test_shares_that_leave_nothing_good_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="leave no good picture: 60 of 60"):
        microworld.run(make_context(tmp_path, microworld={**SMALL, "poor_share": 1.0, "dead_share": 0.0,
            "broken_share": 0.0, "duplicate_share": 0.0, "tiny_share": 0.0}))  # fmt: skip
