"""View pairs: COLMAP files in text and binary, angles against rotation matrices, damaged instances."""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.microworld.camera import matching_pinhole, orbit_pose, rotation_from_quaternion
from model.pictures.decoding import PictureError
from stages.contract import StageError
from stages.data.datasets import read_dataset
from stages.data.schemas import FRAMES, PAIRS
from stages.microworld.turntables import write_instance
from stages.multiview import stage as multiview
from stages.multiview.cameras import CameraError, RegisteredImage
from stages.multiview.colmap import read_images
from stages.multiview.frames import check_foreground, load_frame, read_instance
from stages.multiview.layouts import category_names, find_instances
from stages.multiview.pairs import RANKED_PAIRS, View, angles_degrees, balance, view_pairs, viewing_direction
from tests.support.contexts import make_context

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
def test_text_and_binary_are_equivalent(
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
def test_damaged_binaries_are_read_or_reported(
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
    except CameraError:
        return
    assert all(abs(math.hypot(*image.rotation) - 1) < 1e-6 for image in images)


@pytest.mark.parametrize(
    ("content", "message"),
    [("1 1 0 0 0 0 0\n", "7 of 10 fields"), ("1 1 0 x 0 0 0 0 1 a.jpg\n", "images.txt: could not convert"),
     ("1 0 0 0 0 0 0 0 1 a.jpg\n", "has no rotation"), ("1 nan 0 0 0 0 0 0 1 a.jpg\n", "not finite")],
)  # fmt: skip
def test_damaged_text_is_reported(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "images.txt").write_text(content)
    with pytest.raises(CameraError, match=message):
        read_images(tmp_path)


@given(first=quaternions, second=quaternions)
def test_angles_against_rotation_matrices(first: np.ndarray, second: np.ndarray) -> None:
    axes = [rotation_from_quaternion(q).T @ np.array([0.0, 0.0, 1.0]) for q in (first, second)]
    expected = math.degrees(math.acos(np.clip(axes[0] @ axes[1], -1, 1)))
    directions = [viewing_direction(tuple(q.tolist())) for q in (first, second)]
    assert angles_degrees(np.stack(directions))[0, 1] == pytest.approx(expected, abs=1e-4)


@given(yaw=st.floats(-1.5, 1.5), other=st.floats(-1.5, 1.5))
def test_cameras_on_the_equator_differ_by_their_yaw(yaw: float, other: float) -> None:
    directions = [viewing_direction(tuple(orbit_pose(angle, 0.0).quaternion.tolist())) for angle in (yaw, other)]
    assert angles_degrees(np.stack(directions))[1, 0] == pytest.approx(math.degrees(abs(yaw - other)), abs=1e-4)


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


def test_frames_are_reduced_upright_and_rgb(tmp_path: Path) -> None:
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
    (instance,), repeated = find_instances([tmp_path])
    assert (instance.folder, instance.category, repeated) == (tmp_path / "17" / "1a00", "mug", [])
    assert {row["category"] for row in read_instance(instance, 32, 0.0)} == {"mug"}


def test_instances_of_two_roots_and_both_layouts(tmp_path: Path) -> None:
    for name in ("a/mug/1", "b/mug/2", "b/mug/1"):
        make_instance(tmp_path / name)
    for subject in ("a/dog2", "a/fancy_boot", "b/dog2", "b/17"):
        (tmp_path / subject).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / subject / "00.PNG")
    (tmp_path / "a" / "empty").mkdir()
    (tmp_path / "b" / "mvimgnet_category.txt").write_text("17,Toy Car\n")
    found, repeated = find_instances([tmp_path / "a", tmp_path / "b"])
    assert [(one.category, one.name, one.layout) for one in found] == [
        ("dog", "a/dog2", "pictures"),
        ("fancy boot", "a/fancy_boot", "pictures"),
        ("mug", "1", "colmap"),
        ("toy car", "b/17", "pictures"),
        ("dog", "b/dog2", "pictures"),
        ("mug", "2", "colmap"),
    ]
    assert repeated == [
        f"the instance {tmp_path / 'b' / 'mug' / '1'}: {tmp_path / 'a' / 'mug' / '1'} has the same class and name"
    ]


def test_pairs_of_views_without_cameras_are_drawn_by_the_seed() -> None:
    views = [View(frame_id=f"f{number}", rotation=None) for number in range(5)]
    everything = view_pairs(views, (10.0, 60.0), 100, seed=0)
    assert len({(pair["reference_frame_id"], pair["target_frame_id"]) for pair in everything}) == 20
    assert {pair["angle_degrees"] for pair in everything} == {None}
    few, other = view_pairs(views, (10.0, 60.0), 4, seed=0), view_pairs(views, (10.0, 60.0), 4, seed=1)
    assert few == everything[:4]
    assert few != other


@given(
    counts=st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), st.integers(0, 6)),
    at_most=st.integers(1, 10),
)
def test_categories_are_capped_and_their_instances_share_evenly(
    counts: dict[tuple[str, str], int], at_most: int
) -> None:
    rows = [
        {"category": category, "instance": instance, "rank": rank, "hash": f"{rank}{instance}", "pair_id": "p"}
        for (category, instance), count in counts.items()
        for rank in range(count)
    ]
    kept = balance(pa.Table.from_pylist(rows, schema=RANKED_PAIRS), at_most).to_pylist()
    for category in "ab":
        had = {instance: count for (own, instance), count in counts.items() if own == category}
        # In each round every instance gives a pair, as long as it has one, until there are enough.
        expected = dict.fromkeys(had, 0)
        while sum(expected.values()) < min(at_most, sum(had.values())):
            for instance in sorted(had):
                if expected[instance] < had[instance] and sum(expected.values()) < at_most:
                    expected[instance] += 1
        found = Counter(row["instance"] for row in kept if row["category"] == category)
        assert {instance: found[instance] for instance in had} == expected


def test_a_frame_whose_mask_shows_no_object_is_refused(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    check_foreground(masks, PurePosixPath("001.jpg"), 0.5)  # there is no mask
    masks.mkdir()
    mask = Image.new("L", (10, 10))
    mask.paste(255, (0, 0, 2, 5))
    mask.save(masks / "001.jpg.png")
    check_foreground(masks, PurePosixPath("001.jpg"), 0.1)
    with pytest.raises(PictureError, match=r"covers 10.00% of the picture, less than 11.00%"):
        check_foreground(masks, PurePosixPath("001.jpg"), 0.11)
    Image.new("L", (10, 10)).save(masks / "002.png")
    with pytest.raises(PictureError, match=r"covers 0.00%"):
        check_foreground(masks, PurePosixPath("002.jpg"), 0.02)
    (masks / "003.png").write_bytes(b"text")
    with pytest.raises(PictureError, match=r"003\.png is not a picture"):
        check_foreground(masks, PurePosixPath("003.jpg"), 0.02)


@pytest.mark.slow
def test_the_stage_skips_damaged_instances_with_a_warning(tmp_path: Path, ray_cluster: str) -> None:
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
    context = make_context(tmp_path / "out", events=events, multiview={"folders": [str(root)], "image_size": 32})  # type: ignore[arg-type]
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
    again = make_context(tmp_path / "again", multiview={"folders": [str(root)], "image_size": 32})
    multiview.run(again)
    assert read_dataset(again.output / "frames", FRAMES) == frames
    assert read_dataset(again.output / "pairs", PAIRS) == pairs


@pytest.mark.slow
def test_unusable_folders_are_one_sentence(tmp_path: Path, ray_cluster: str) -> None:
    with pytest.raises(StageError, match="holds neither class_label/instance_id"):
        multiview.run(make_context(tmp_path / "a", multiview={"folders": [str(tmp_path)]}))
    with pytest.raises(StageError, match="there is no folder /no/such"):
        multiview.run(make_context(tmp_path / "a", multiview={"folders": ["/no/such"]}))
    make_instance(tmp_path / "mv" / "mug" / "a", yaws=[0.0, 0.001])
    with pytest.raises(StageError, match="no pair of views between 10 and 120 degrees apart among 2 frames"):
        multiview.run(make_context(tmp_path / "b", multiview={"folders": [str(tmp_path / "mv")]}))


@pytest.mark.slow
def test_plain_folders_make_pairs_without_angles(tmp_path: Path, ray_cluster: str) -> None:
    rng = np.random.default_rng(0)
    for subject, count in {"dog": 4, "dog2": 3, "cat": 2, "lonely": 1}.items():
        (tmp_path / "plain" / subject).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "plain" / subject / f"{number:02d}.jpg")
    changes = {"folders": [str(tmp_path / "plain")], "image_size": 16, "pairs_per_category": 6}
    context = make_context(tmp_path, multiview=changes)
    result = multiview.run(context)
    assert result.rows == {"frames": 9, "pairs": 8}
    assert result.metrics == {
        "damaged_instances": 1,
        "lost_frames": 0,
        "categories": 2,
        "fewest_pairs_of_a_category": 2,
        "most_pairs_of_a_category": 6,
    }
    frames, pairs = read_dataset(context.output / "frames", FRAMES), read_dataset(context.output / "pairs", PAIRS)
    assert set(frames["category"].to_pylist()) == {"dog", "cat"}
    assert frames["rotation"].null_count == 9
    assert pairs["angle_degrees"].null_count == 8
    own = dict(zip(frames["frame_id"].to_pylist(), frames["instance"].to_pylist(), strict=True))
    assert Counter(row["instance"] for row in pairs.to_pylist()) == {"plain/dog": 3, "plain/dog2": 3, "plain/cat": 2}
    for row in pairs.to_pylist():
        assert own[row["reference_frame_id"]] == own[row["target_frame_id"]] == row["instance"]
        assert row["reference_frame_id"] != row["target_frame_id"]
