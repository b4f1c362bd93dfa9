"""At which size `ingest` and `multiview` store pictures, and what is said of a size that is too small."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pipeline
from pipelines.config.loading import config_from_dict, config_to_dict, load_config, with_values
from pipelines.graph import pipeline_graph
from pipelines.plan import Action, Step, blurred_references
from stages.multiview.frames import load_frame
from stages.shared_config import LARGEST_CROP_RATIO, BackboneConfig
from tests.support.picture_files import encode, scene
from tests.support.toy_pipeline import INGREDIENTS


@given(
    resolution=st.integers(1, 2048).map(lambda eighth: 8 * eighth),
    reference=st.integers(8, 1024),
    tiles=st.integers(1, 4),
    ratio=st.floats(1, LARGEST_CROP_RATIO),
)
def test_nothing_that_training_takes_of_a_stored_picture_is_enlarged(
    resolution: int, reference: int, tiles: int, ratio: float
) -> None:
    backbone = BackboneConfig(resolution=resolution, reference_size=reference, high_resolution_tiles=tiles)
    stored = backbone.stored_size(None)
    assert stored >= resolution
    assert stored >= round(reference * tiles * ratio)  # the side that `crop_reference` resizes the picture to
    assert stored == max(resolution, math.ceil(reference * tiles * LARGEST_CROP_RATIO))


@pytest.mark.parametrize(
    ("settings", "ingest", "multiview"),
    [
        ([], 2429, 2429),
        (["ingest.image_size=768"], 768, 2429),
        (["backbone.high_resolution_tiles=1"], 1215, 1215),
        (["backbone.reference_size=224", "multiview.image_size=null"], 1417, 1417),
        (["backbone.resolution=4096"], 4096, 4096),
        (["curriculum.max_crop_ratio=1"], 2429, 2429),  # another recipe means no other download
    ],
)
def test_null_is_what_the_backbone_can_use(settings: list[str], ingest: int, multiview: int) -> None:
    config = load_config("sd15", settings)
    assert (config.ingest.image_size, config.multiview.image_size) == (ingest, multiview)
    assert config_from_dict(config_to_dict(config)) == config
    assert with_values(config, {"ingest.image_size": None}).ingest.image_size == config.backbone.stored_size(None)


def test_frames_are_never_enlarged(tmp_path: Path) -> None:
    for side, stored in ((300, 300), (2429, 2429), (2600, 2429)):
        (tmp_path / "frame.jpg").write_bytes(encode(scene(1, side)))
        data, size = load_frame(tmp_path / "frame.jpg", 2429)
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == size == (stored, stored)


MINE, FRAMES = "ingest.metadata=urls.parquet", "multiview.folders=[views]"


@pytest.mark.parametrize(
    ("profile", "settings", "warned"),
    [
        ("sd15", [], []),
        ("sd15", ["ingest.image_size=512"], ["ingest.image_size=512"]),
        ("sd15", ["ingest.image_size=768", "curriculum.max_crop_ratio=1"], []),
        ("sd15", ["ingest.image_size=2428", "multiview.image_size=8"], ["ingest.image_size", "multiview.image_size=8"]),
        ("sd15", ["curriculum.max_crop_ratio=4"], ["ingest.image_size=2429 is less than the 3072", "multiview"]),
        ("sdxl", ["multiview.image_size=1024"], ["multiview.image_size=1024 is less than the 2429"]),
        ("micro", [], []),  # the microworld's pictures have this size
        ("micro", [MINE], ["ingest.image_size=64 is less than the 192"]),
        ("micro", [MINE, "ingest.image_size=192"], []),
        ("micro", [FRAMES], ["multiview.image_size=64"]),
    ],
)
def test_a_size_that_blurs_references_is_named(profile: str, settings: list[str], warned: list[str]) -> None:
    config = load_config(profile, settings)
    graph = pipeline_graph(config)
    plan = [
        Step(stage=graph.stages[name], ingredients=INGREDIENTS, action=Action.RUN, why="", output=None)
        for name in ("ingest", "multiview")
    ]
    found = blurred_references(config, plan)
    assert len(found) == len(warned)
    assert all(words in sentence for sentence, words in zip(found, warned, strict=True))
    assert blurred_references(config, [replace(step, action=Action.KEEP) for step in plan]) == []


def test_the_plan_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [word for setting in (FRAMES, f"run.folder={tmp_path / 'run'}") for word in ("--set", setting)]
    assert pipeline.main(["plan", "--stage", "multiview", *flags]) == 0
    assert capsys.readouterr().err.startswith("warning: multiview.image_size=64 is less than the 192 pixels that ")
