"""Layouts of views of objects: MVImgNet's, CO3D's, and plain folders; and CO3D's cameras."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stages.contract import StageError
from stages.multiview.cameras import CameraError
from stages.multiview.co3d import read_sequence
from stages.multiview.frames import read_instance
from stages.multiview.layouts import find_instances
from stages.multiview.pairs import View, view_pairs, viewing_direction
from stages.multiview.stage import find_all
from stages.storage import store_path
from tests.support.picture_files import encode, scene

POSE = "{0} 1 0 0 0 0 0 {0} 1 {0}.jpg\n\n"


def pictures(*folders: str) -> Callable[[Path], object]:
    """Two pictures in each folder."""

    def write(root: Path) -> None:
        for folder in folders:
            for number in range(2):
                file = root / folder / f"{number}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode(scene(number)))

    return write


def colmap(*instances: str, sparse: str = "sparse/0") -> Callable[[Path], object]:
    def write(root: Path) -> None:
        pictures(*(f"{one}/images" for one in instances))(root)
        for one in instances:
            (root / one / sparse).mkdir(parents=True)
            (root / one / sparse / "images.txt").write_text(POSE.format(0) + POSE.format(1))

    return write


def turn(degrees: float) -> NDArray[np.float64]:
    """A rotation about Y, as columns of a viewpoint's R."""
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])


def frame(sequence: str, number: int, category: str = "apple", **changes: Any) -> dict[str, Any]:
    """As in CO3D's `frame_annotations.jgz`."""
    viewpoint = {"R": turn(30 * number).tolist(), "T": [0.0, 0.0, 1.0], "focal_length": [1, 1]}
    image = {"path": f"{category}/{sequence}/images/{number}.jpg", "size": [64, 64]}
    own = {"sequence_name": sequence, "frame_number": number, "image": image, "viewpoint": viewpoint, "depth": None}
    return own | changes


def annotate(folder: Path, frames: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frame_annotations.jgz").write_bytes(gzip.compress(json.dumps(frames).encode()))


def co3d(categories: Mapping[str, Sequence[str]], above: str = "") -> Callable[[Path], object]:
    """Categories with the names of their sequences, two frames each."""

    def write(root: Path) -> None:
        for category, sequences in categories.items():
            pictures(*(f"{one}/images" for one in sequences))(root / above / category)
            own = [frame(one, number, category or "apple") for one in sequences for number in range(2)]
            annotate(root / above / category, own)
            (root / above / category / "sequence_annotations.jgz").write_bytes(b"")
            (root / above / category / "set_lists").mkdir()

    return write


def both(*writers: Callable[[Path], object]) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        for one in writers:
            one(root)

    return write


def category_file(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "mvimgnet_category.txt").write_text(text)


#: What is written below the folder `data`, and (category, instance, layout) of all instances that are read.
LAYOUTS: dict[str, tuple[Callable[[Path], object], list[tuple[str, str, str]]]] = {
    "mvimgnet": (colmap("17/0a01", "17/0a02"), [("17", "0a01", "colmap"), ("17", "0a02", "colmap")]),
    "mvimgnet with names": (both(colmap("17/0a01"), category_file("17,Mug\n")), [("mug", "0a01", "colmap")]),
    "mvimgnet without sparse/0": (colmap("17/0a01", sparse="sparse"), [("17", "0a01", "colmap")]),
    "mvimgnet's archives unpacked side by side": (
        both(colmap("mvi_00/17/0a01", "mvi_01/18/0b01"), category_file("17,mug\n18,motorcycle\n")),
        [("mug", "0a01", "colmap"), ("motorcycle", "0b01", "colmap")],
    ),
    "co3d": (
        co3d({"apple": ["110_1", "189_2"], "cup": ["12_1"]}),
        [("apple", "110_1", "co3d"), ("apple", "189_2", "co3d"), ("cup", "12_1", "co3d")],
    ),
    "co3d in a folder": (co3d({"apple": ["110_1"]}, above="v2/"), [("apple", "110_1", "co3d")]),
    "co3d, words of a category": (
        co3d({"teddybear": ["1_1"], "toytruck": ["2_2"]}),
        [("teddy bear", "1_1", "co3d"), ("toy truck", "2_2", "co3d")],
    ),
    "co3d beside mvimgnet": (
        both(co3d({"apple": ["110_1"]}), colmap("17/0a01")),
        [("17", "0a01", "colmap"), ("apple", "110_1", "co3d")],
    ),
    "one category of co3d": (co3d({"": ["110_1"]}), [("data", "110_1", "co3d")]),
    "a folder a subject": (
        pictures("dog2", "mug"), [("dog", "data/dog2", "pictures"), ("mug", "data/mug", "pictures")],
    ),
    "dreambench": (
        both(
            pictures("bear_plushie", "dog2"),
            lambda root: (root / "prompts_and_classes.txt").write_text("bear_plushie,stuffed animal\ndog2,dog\n"),
        ),
        [("stuffed animal", "data/bear_plushie", "pictures"), ("dog", "data/dog2", "pictures")],
    ),
    "pictures in images": (pictures("red_mug/images"), [("red mug", "data/red_mug", "pictures")]),
    "pictures in rgb, with depth and masks": (
        pictures("mug/rgb", "mug/depth", "mug/masks"),
        [("mug", "data/mug", "pictures")],
    ),
    "a folder a class": (
        pictures("dog/rex", "dog/bello", "mug/one"),
        [("dog", "dog/bello", "pictures"), ("dog", "dog/rex", "pictures"), ("mug", "mug/one", "pictures")],
    ),
    "classes and subjects": (
        pictures("dog/rex", "mug"), [("dog", "dog/rex", "pictures"), ("mug", "data/mug", "pictures")],
    ),
    "pictures beside folders": (pictures("dog", "dog/old"), [("dog", "data/dog", "pictures")]),
    "masks beside pictures": (pictures("dog", "dog/masks"), [("dog", "data/dog", "pictures")]),
    "one subject": (pictures(""), [("data", "root/data", "pictures")]),
    "numbered classes with names": (
        both(pictures("17/rex", "18"), category_file("17,Dog\n18,Mug\n")),
        [("dog", "17/rex", "pictures"), ("mug", "data/18", "pictures")],
    ),
    "numbered subjects": (pictures("01", "02"), [("data", "data/01", "pictures"), ("data", "data/02", "pictures")]),
    "custom concepts": (pictures("pet_cat1", "pet_cat6"), [
        ("pet cat", "data/pet_cat1", "pictures"), ("pet cat", "data/pet_cat6", "pictures"),
    ]),
    "hidden folders": (pictures("dog", ".dog", "_dog", "mug/._x", "__MACOSX/dog"), [("dog", "data/dog", "pictures")]),
}  # fmt: skip


def found_in(root: Path) -> list[tuple[str, str, str]]:
    found, left_out = find_instances([root])
    assert left_out == []
    assert all(sum("frame_id" in row for row in read_instance(one, 64, 0.0)) == 2 for one in found)
    return [(one.category, one.name, one.layout) for one in found]


@pytest.mark.parametrize(("write", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(write: Callable[[Path], object], expected: list[tuple[str, str, str]], tmp_path: Path) -> None:
    root = tmp_path / "root" / "data"
    root.mkdir(parents=True)
    write(root)
    assert found_in(root) == expected


@pytest.mark.parametrize(("write", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_in_a_store(
    write: Callable[[Path], object], expected: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    """A store knows no folders, only names."""
    write(tmp_path)
    root = store_path(f"memory://{tmp_path.name}/root/data")
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        (root / str(file.relative_to(tmp_path))).write_bytes(file.read_bytes())
    found, left_out = find_instances([root])
    assert ([(one.category, one.name, one.layout) for one in found], left_out) == (expected, [])
    for one in found:
        assert sum("frame_id" in row for row in read_instance(one, 64, 0.0)) == 2


@pytest.mark.parametrize(
    "write",
    [
        pictures("a/b/c/d"),
        colmap("one"),  # an instance that is no class's
        lambda root: (root / "mug.zip").write_bytes(b"PK"),
        pictures("mug/masks"),
    ],
    ids=["too deep", "a class of mvimgnet", "an archive", "masks only"],
)
def test_other_layouts_are_one_sentence(write: Callable[[Path], object], tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(StageError, match=r"MVImgNet's layout.*frame_annotations\.jgz.*subject each") as caught:
        find_all([tmp_path])
    assert "\n" not in str(caught.value)


# CO3D's cameras


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_the_camera_faces_where_pytorch3ds_does(quaternion: list[float]) -> None:
    """It faces along its Z, so in the world along R (0, 0, 1) of X_camera = X_world R + T."""
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        viewpoint = {"R": rotation.tolist(), "T": [1.0, 2.0, 3.0]}
        annotate(Path(folder), [frame("one", 0, viewpoint=viewpoint)])
        (image,) = read_sequence(Path(folder), "one")
    assert np.allclose(viewing_direction(image.rotation), rotation[:, 2], atol=1e-9)
    assert image.translation == (-1.0, -2.0, 3.0)
    assert np.isclose(np.linalg.norm(image.rotation), 1)


def test_angles_between_views(tmp_path: Path) -> None:
    annotate(tmp_path / "apple", [frame("one", number) for number in range(4)])
    views = [View(frame_id=one.name, rotation=one.rotation) for one in read_sequence(tmp_path / "apple", "one")]
    found = {
        (one["reference_frame_id"], one["target_frame_id"]): one["angle_degrees"]
        for one in view_pairs(views, (0, 180), 99, 0)
    }
    assert found[("0.jpg", "1.jpg")] == pytest.approx(30)
    assert found[("3.jpg", "0.jpg")] == pytest.approx(90)


def test_frames_without_a_viewpoint_are_no_frames(tmp_path: Path) -> None:
    """Version 2 keeps back those of its test sets."""
    annotate(tmp_path, [frame("one", 0), frame("one", 1, viewpoint=None), frame("two", 0, viewpoint=None)])
    assert [one.name for one in read_sequence(tmp_path, "one")] == ["0.jpg"]
    with pytest.raises(CameraError, match="no viewpoint of two"):
        read_sequence(tmp_path, "two")


def bent(**changes: Any) -> list[dict[str, Any]]:
    return [frame("one", 0, viewpoint=frame("one", 0)["viewpoint"] | changes)]


def zipped(content: Any) -> bytes:
    return gzip.compress(json.dumps(content).encode(), mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short or damaged"),
        (b"text", "cut short or damaged"),
        (zipped([frame("one", 0)])[:40], "cut short or damaged"),
        (gzip.compress(b"{]", mtime=0), "cut short or damaged"),
        (zipped({}), "no viewpoint of one"),
        (zipped([1]), "cut short or damaged"),
        (zipped([frame("other", 0)]), "no viewpoint of one"),
        (zipped([frame("one", 0, image=None)]), "a frame of another form"),
        (zipped([frame("one", 0, viewpoint={"R": 1})]), "a frame of another form"),
        (zipped(bent(T=[1, 2])), r"is no R \(3 x 3\) and T \(3\)"),
        (zipped(bent(R=[[1, 0, 0]] * 3)), "is no rotation"),
        (zipped(bent(R=np.diag([1, 1, -1]).tolist())), "is no rotation"),
        (zipped(bent(R=[[float("nan")] * 3] * 3)), "is no rotation"),
        (zipped(bent(T=[0, 0, float("inf")])), "not finite"),
    ],
    ids=range(14),
)  # fmt: skip
def test_damaged_annotations_lose_an_instance(content: bytes, message: str, tmp_path: Path) -> None:
    pictures("apple/one/images")(tmp_path)
    (tmp_path / "apple" / "frame_annotations.jgz").write_bytes(content)
    (instance,), _ = find_instances([tmp_path])
    (row,) = read_instance(instance, 64, 0.0)
    assert row["is_instance"]
    with pytest.raises(CameraError, match=message):
        read_sequence(tmp_path / "apple", "one")


@pytest.mark.parametrize(
    ("most", "read"), [(None, "0123456789"), (10, "0123456789"), (5, "02468"), (3, "036"), (2, "05")]
)
def test_of_a_video_some_frames_are_read(most: int | None, read: str, tmp_path: Path) -> None:
    annotate(tmp_path / "apple", [frame("one", number) for number in range(10)])
    for number in range(10):
        file = tmp_path / "apple" / "one" / "images" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(scene(number)))
    (instance,), _ = find_instances([tmp_path])
    rows = read_instance(instance, 64, 0.0, most)
    assert [row["picture"] for row in rows] == [encode(scene(int(number))) for number in read]


def test_masks_lie_beside_the_folder_of_the_pictures(tmp_path: Path) -> None:
    pictures("mug/images")(tmp_path)
    (tmp_path / "mug" / "masks").mkdir()
    Image.new("L", (64, 64), 0).save(tmp_path / "mug" / "masks" / "0.png")
    (instance,), _ = find_instances([tmp_path])
    (row,) = read_instance(instance, 64, 0.02)
    assert "0.jpg: its mask covers 0.00%" in row["problem"]
