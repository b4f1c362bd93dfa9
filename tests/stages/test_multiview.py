"""View pairs: COLMAP files in text and binary, angles against rotation matrices, damaged instances."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from helpers import make_context
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.microworld.camera import matching_pinhole, orbit_pose, rotation_from_quaternion
from stages import multiview
from stages.datasets import read_dataset
from stages.microworld.turntables import write_instance
from stages.multiview.colmap import ColmapError, RegisteredImage, read_images
from stages.multiview.frames import category_names, find_instances, load_frame, read_instance
from stages.multiview.pairs import View, angle_degrees, view_pairs, viewing_direction
from stages.schemas import FRAMES, PAIRS
from stages.stage import StageError

YAWS = [-0.6, -0.2, 0.2, 0.6]


def make_instance(folder: Path, yaws: list[float] = YAWS, side: int = 32) -> None:
    rng = np.random.default_rng(len(str(folder)))
    pixels = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in yaws]
    write_instance(folder, pixels, [orbit_pose(yaw, 0.3) for yaw in yaws], matching_pinhole(side, 10.0))


def binary(images: list[RegisteredImage], points: int = 2) -> bytes:
    """COLMAP's images.bin, as its documentation describes it."""
    data = struct.pack("<Q", len(images))
    for number, image in enumerate(images, start=1):
        data += struct.pack("<I4d3dI", number, *image.rotation, *image.translation, 1) + image.name.encode() + b"\0"
        data += struct.pack("<Q", points) + struct.pack("<ddq", 1.5, 2.5, -1) * points
    return data


quaternions = (
    st.tuples(*[st.floats(-1, 1)] * 4)
    .filter(lambda q: math.hypot(*q) > 0.1)
    .map(lambda q: np.array(q) / math.hypot(*q))
)


@settings(max_examples=40, deadline=None)
@given(rotations=st.lists(quaternions, min_size=1, max_size=5), points=st.integers(0, 3))
def test_text_and_binary_say_the_same(
    rotations: list[np.ndarray], points: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sparse = tmp_path_factory.mktemp("sparse")
    lines = ["# a comment"]
    for number, quaternion in enumerate(rotations, start=1):
        numbers = " ".join(repr(float(value)) for value in quaternion)
        lines += [f"{number} {numbers} 0.5 -1.0 2.0 1 a {number}.jpg", "1.5 2.5 -1 " * points]
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    from_text = read_images(sparse)
    assert [image.name for image in from_text] == [f"a {number}.jpg" for number in range(1, len(rotations) + 1)]
    assert np.allclose([image.rotation for image in from_text], rotations, atol=1e-12)
    (sparse / "images.bin").write_bytes(binary(from_text, points))
    assert read_images(sparse) == from_text


@given(cut=st.integers(0, 400), flips=st.lists(st.integers(0, 399), max_size=4))
def test_damaged_binaries_are_told_or_read_but_never_crash(
    cut: int, flips: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = RegisteredImage(name="001.jpg", rotation=(1.0, 0.0, 0.0, 0.0), translation=(0.0, 0.0, 1.0))
    data = bytearray(binary([image] * 3))
    for place in flips:
        data[place % len(data)] ^= 0x5A
    sparse = tmp_path_factory.mktemp("sparse")
    (sparse / "images.bin").write_bytes(bytes(data[:cut]))
    try:
        images = read_images(sparse)
    except ColmapError:
        return
    assert all(abs(math.hypot(*image.rotation) - 1) < 1e-6 for image in images)


@pytest.mark.parametrize(
    ("content", "message"),
    [("1 1 0 0 0 0 0\n", "7 of 10 fields"), ("1 1 0 x 0 0 0 0 1 a.jpg\n", "images.txt: could not convert"),
     ("1 0 0 0 0 0 0 0 1 a.jpg\n", "has no rotation"), ("1 nan 0 0 0 0 0 0 1 a.jpg\n", "not finite")],
)  # fmt: skip
def test_damaged_text_is_told(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "images.txt").write_text(content)
    with pytest.raises(ColmapError, match=message):
        read_images(tmp_path)


@given(first=quaternions, second=quaternions)
def test_angles_against_rotation_matrices(first: np.ndarray, second: np.ndarray) -> None:
    axes = [rotation_from_quaternion(q).T @ np.array([0.0, 0.0, 1.0]) for q in (first, second)]
    expected = math.degrees(math.acos(np.clip(axes[0] @ axes[1], -1, 1)))
    directions = [viewing_direction(tuple(q.tolist())) for q in (first, second)]
    assert angle_degrees(*directions) == pytest.approx(expected, abs=1e-4)


@given(yaw=st.floats(-1.5, 1.5), other=st.floats(-1.5, 1.5))
def test_cameras_on_the_equator_differ_by_their_yaw(yaw: float, other: float) -> None:
    directions = [viewing_direction(tuple(orbit_pose(angle, 0.0).quaternion.tolist())) for angle in (yaw, other)]
    assert angle_degrees(*directions) == pytest.approx(math.degrees(abs(yaw - other)), abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(yaws=st.lists(st.floats(-1.2, 1.2), max_size=7), at_most=st.integers(1, 20), seed=st.integers(0, 3))
def test_pairs_are_those_within_the_limits(yaws: list[float], at_most: int, seed: int) -> None:
    views = [
        View(frame_id=f"f{n}", rotation=tuple(orbit_pose(yaw, 0.0).quaternion.tolist())) for n, yaw in enumerate(yaws)
    ]
    pairs = view_pairs(views, (10.0, 60.0), at_most, seed)
    within = {
        (f"f{a}", f"f{b}")
        for a, first in enumerate(yaws)
        for b, second in enumerate(yaws)
        if a != b and 10.001 <= math.degrees(abs(first - second)) <= 59.999
    }
    found = {(pair["reference_frame_id"], pair["target_frame_id"]) for pair in pairs}
    assert len(pairs) == len(found) <= at_most
    assert len(pairs) == at_most or found >= within
    assert all(10.0 <= pair["angle_degrees"] <= 60.0 for pair in pairs)
    assert pairs == view_pairs(views[::-1], (10.0, 60.0), at_most, seed)


def test_frames_are_made_small_upright_and_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (120, 60)).save(tmp_path / "turned.jpg", exif=exif)
    _, size = load_frame(tmp_path / "turned.jpg", 32)
    assert size == (32, 64)
    Image.new("RGB", (32, 40)).save(tmp_path / "small.jpg")
    assert load_frame(tmp_path / "small.jpg", 32) == ((tmp_path / "small.jpg").read_bytes(), (32, 40))


def test_mvimgnets_numeric_labels_get_their_names(tmp_path: Path) -> None:
    make_instance(tmp_path / "17" / "1a00")
    (tmp_path / "mvimgnet_category.txt").write_text("0,bag\n17,Mug\n203,Toy butterfly \n")
    names = category_names(tmp_path)
    assert names["203"] == "toy butterfly"
    assert find_instances(tmp_path) == [tmp_path / "17" / "1a00"]
    assert {row["category"] for row in read_instance(tmp_path / "17" / "1a00", names, 32)} == {"mug"}


@pytest.mark.slow
def test_the_stage_skips_what_is_damaged_and_says_so(tmp_path: Path, ray_cluster: str) -> None:
    root = tmp_path / "mv"
    for name in ("mug/a", "mug/b", "duck/c", "duck/no_cameras", "duck/no_pictures"):
        make_instance(root / name)
    (root / "duck" / "no_cameras" / "sparse" / "0" / "images.txt").unlink()
    for file in (root / "duck" / "no_pictures" / "images").iterdir():
        file.write_bytes(b"text")
    cut = root / "mug" / "b" / "images" / "002.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    (root / "duck" / "c" / "sparse" / "0" / "images.bin").write_bytes(
        binary(read_images(root / "duck" / "c" / "sparse" / "0"))
    )
    events: list[dict[str, object]] = []
    context = make_context(tmp_path / "out", events=events, multiview={"folder": str(root), "image_size": 32})  # type: ignore[arg-type]
    result = multiview.run(context)
    assert result.metrics["damaged_instances"] == 2
    assert result.metrics["lost_frames"] == 1
    frames, pairs = read_dataset(context.output / "frames", FRAMES), read_dataset(context.output / "pairs", PAIRS)
    assert (
        result.rows == {"frames": 11, "pairs": pairs.num_rows} == {"frames": frames.num_rows, "pairs": pairs.num_rows}
    )
    assert frames["frame_id"].to_pylist() == sorted(frames["frame_id"].to_pylist())
    assert pc.all(pc.is_in(pairs["reference_frame_id"], value_set=frames["frame_id"].combine_chunks())).as_py()
    # Yaws 0.4 apart at pitch 0.3: all distinct pairs of 4 or 3 views lie between 10 and 120 degrees.
    assert pairs.num_rows == 2 * 12 + 6
    warnings = [str(event["text"]) for event in events if event["event"] == "warning"]
    assert any("duck/no_cameras" in text for text in warnings)
    assert any("duck/no_pictures" in text for text in warnings)
    again = make_context(tmp_path / "again", multiview={"folder": str(root), "image_size": 32})
    multiview.run(again)
    assert read_dataset(again.output / "frames", FRAMES) == frames
    assert read_dataset(again.output / "pairs", PAIRS) == pairs


@pytest.mark.slow
def test_what_cannot_be_used_at_all_is_one_sentence(tmp_path: Path, ray_cluster: str) -> None:
    with pytest.raises(StageError, match="holds no class_label/instance_id"):
        multiview.run(make_context(tmp_path / "a", multiview={"folder": str(tmp_path)}))
    make_instance(tmp_path / "mv" / "mug" / "a", yaws=[0.0, 0.001])
    with pytest.raises(StageError, match="no pair of views between 10 and 120 degrees apart among 2 frames"):
        multiview.run(make_context(tmp_path / "b", multiview={"folder": str(tmp_path / "mv")}))
