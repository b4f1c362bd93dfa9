"""COLMAP's files as its own reader takes them, in text and binary; and names on disk of every kind."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.contract import StageError
from stages.data.schemas import content_id
from stages.multiview.cameras import CameraError, relative_path
from stages.multiview.colmap import model_folder, read_images
from stages.multiview.frames import instance_table, read_instance, read_instances
from stages.multiview.layouts import find_instances
from stages.multiview.stage import find_all
from tests.support.picture_files import encode, scene

NAMES = ("0.jpg", "1.jpg", "2.jpg")


def pose(name: str, number: int = 1) -> str:
    return f"{number} 1 0 0 0 0 0 {number} 1 {name}"


def text_of(names: tuple[str, ...] = NAMES, points: str = "10 10 -1", between: str = "", ending: str = "\n") -> str:
    lines = (f"{pose(name, number)}{ending}{points}{ending}{between}" for number, name in enumerate(names, start=1))
    return f"# Image list{ending}" + "".join(lines)


HEAD = "# Image list with two lines of data per image:\n#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n"

#: What COLMAP's reader takes, and the names that it finds.
TEXTS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "plain": (text_of().encode(), NAMES),
    "no points": (text_of(points="").encode(), NAMES),
    "many points": (text_of(points="1.5 2.5 -1 " * 500).encode(), NAMES),
    "blank after the head": (f"{HEAD}\n\n{text_of()}".encode(), NAMES),
    "blank between images": (text_of(between="\n").encode(), NAMES),
    "blanks between images without points": (text_of(points="", between="\n \n").encode(), NAMES),
    "comments between images": (text_of(between="# next\n").encode(), NAMES),
    "indented comments": (f"  # by hand\n\t# too\n{text_of()}".encode(), NAMES),
    "comment before the points": (text_of(points="# points\n1 1 -1").encode(), NAMES),
    "crlf": (text_of(ending="\r\n").encode(), NAMES),
    "crlf, no points": (text_of(points="", ending="\r\n").encode(), NAMES),
    "byte order mark": (b"\xef\xbb\xbf" + text_of().encode(), NAMES),
    "byte order mark before a pose": (b"\xef\xbb\xbf" + f"{pose('0.jpg')}\n\n".encode(), NAMES[:1]),
    "utf-16": (text_of().encode("utf-16"), NAMES),
    "no final line break": (text_of().rstrip("\n").encode(), NAMES),
    "last points missing": (f"{pose('0.jpg')}\n1 1 -1\n{pose('1.jpg', 2)}".encode(), NAMES[:2]),
    "all points missing": ("\n".join(map(pose, NAMES)).encode(), NAMES),
    "spaces around lines": (text_of().replace("\n", "  \n  ").encode(), NAMES),
    "tabs between fields": (text_of().replace(" 1 0 0 ", "\t1\t0\t0\t").encode(), NAMES),
    "names with spaces": (text_of(("my photo 1.jpg", "a  b.jpg")).encode(), ("my photo 1.jpg", "a  b.jpg")),
    "names that fill threes": (text_of(("a b 1.jpg", "c d 2.jpg"), points="").encode(), ("a b 1.jpg", "c d 2.jpg")),
    "names with folders": (text_of(("left/0.jpg", "right/0.jpg")).encode(), ("left/0.jpg", "right/0.jpg")),
    "names in other scripts": (text_of(("杯子.jpg", "Tässchen.jpg")).encode(), ("杯子.jpg", "Tässchen.jpg")),
    "names that are not utf-8": (b"1 1 0 0 0 0 0 0 1 caf\xe9.jpg\n\n", (os.fsdecode(b"caf\xe9.jpg"),)),
    "names that are not utf-8, byte order mark": (
        b"\xef\xbb\xbf1 1 0 0 0 0 0 0 1 caf\xe9.jpg\n\n",
        (os.fsdecode(b"caf\xe9.jpg"),),
    ),
    "a no-break space in a name": (text_of(("a\u00a0b.jpg",)).encode(), ("a\u00a0b.jpg",)),
    "a form feed in a name": (text_of(("a\x0cb\x85c.jpg",)).encode(), ("a\x0cb\x85c.jpg",)),
    "exponents": (b"1 1e0 0.0 -0 +0 0 0 1E-3 1 0.jpg\n\n", NAMES[:1]),
    "nothing": (HEAD.encode(), ()),
}


@pytest.mark.parametrize(("data", "names"), TEXTS.values(), ids=TEXTS)
def test_texts_that_colmap_reads(data: bytes, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "images.txt").write_bytes(data)
    assert tuple(image.name for image in read_images(tmp_path)) == names


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", "杯子/0.jpg".encode(), b"a b.jpg", b"left/0.jpg", b"a\nb.jpg"])
def test_names_in_binary_files(name: bytes, tmp_path: Path) -> None:
    one = struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 1, 1) + name + b"\0" + struct.pack("<Q", 0)
    (tmp_path / "images.bin").write_bytes(one)
    assert os.fsencode(read_images(tmp_path)[0].name) == name


@pytest.mark.parametrize(
    ("name", "path"),
    [("a.jpg", "a.jpg"), ("left/a.jpg", "left/a.jpg"), ("./a.jpg", "a.jpg"), ("left//a.jpg", "left/a.jpg"),
     ("left\\a.jpg", "left/a.jpg"), ("a..b/..c.jpg", "a..b/..c.jpg"),
     ("_DSC0001.JPG", "_DSC0001.JPG"), ("1:30.jpg", "1:30.jpg")],
)  # fmt: skip
def test_paths_below_the_pictures(name: str, path: str) -> None:
    assert str(relative_path(name)) == path


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "left/../../a.jpg", "left/..", "..", "/etc/a.jpg", "//host/a.jpg", "\\\\host\\share\\a.jpg",
     "C:\\a.jpg", "C:/a.jpg", "c:a.jpg", "\\a.jpg", "left\\..\\..\\a.jpg", ".", ""],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(CameraError, match="is no path below images/: write it relative"):
        relative_path(name)


@pytest.mark.parametrize("place", ["sparse/0", "sparse"])
@pytest.mark.parametrize("name", ["images.bin", "images.txt"])
def test_a_model_lies_in_either_folder(place: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    with pytest.raises(CameraError, match=r"neither sparse/0 nor sparse has images\.bin or images\.txt"):
        model_folder(tmp_path)
    (tmp_path / place / name).touch()
    assert model_folder(tmp_path) == tmp_path / place


def write_instance(folder: Path, names: tuple[str, ...], points: str = "") -> None:
    (folder / "sparse" / "0").mkdir(parents=True)
    (folder / "sparse" / "0" / "images.txt").write_bytes(os.fsencode(text_of(names, points=points)))
    for number, name in enumerate(names):
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(scene(number)))


def read_all(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The frames and the problems of a root, through the table that goes to the workers."""
    instances, left_out = find_instances([root])
    rows = read_instances(instance_table(instances), 64, 0.02).to_pylist() if instances else []
    frames = [row for row in rows if row["frame_id"]]
    return frames, left_out + [row["problem"] for row in rows if not row["frame_id"]]


def test_frames_in_folders_keep_their_pictures_and_masks(tmp_path: Path) -> None:
    names = ("left/0.jpg", "right/0.jpg", "right/1.jpg", "2.jpg")
    write_instance(tmp_path / "mug" / "one", names)
    for name, level in (("left/0.jpg.png", 0), ("right/1.png", 0), ("0.jpg.png", 0), ("2.jpg.png", 255)):
        file = tmp_path / "mug" / "one" / "masks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), level).save(file)
    frames, problems = read_all(tmp_path)
    assert [row["frame_id"] for row in frames] == [content_id("mug", "one", name) for name in ("right/0.jpg", "2.jpg")]
    assert [row["picture"] for row in frames] == [encode(scene(1)), encode(scene(3))]
    lost = [text.partition(":")[0] for text in problems]
    assert lost == ["the frame mug/one/left/0.jpg", "the frame mug/one/right/1.jpg"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda images: (images / "0.jpg").unlink(), "0.jpg: there is no such file"),
        (lambda images: (images / "0.jpg").write_bytes(b""), "0.jpg: the picture is not a picture"),
        (lambda images: os.mkfifo((images / "0.jpg").rename(images / "x").with_name("0.jpg")), "0.jpg: there is no"),
    ],
    ids=["missing", "empty", "pipe"],
)
def test_a_registered_image_without_its_file_is_one_lost_frame(
    change: Callable[[Path], object], problem: str, tmp_path: Path
) -> None:
    write_instance(tmp_path / "mug" / "one", NAMES)
    change(tmp_path / "mug" / "one" / "images")
    frames, problems = read_all(tmp_path)
    assert (len(frames), len(problems)) == (2, 1)
    assert problem in problems[0]


def test_names_that_lead_elsewhere_and_repeated_ones_are_lost_frames(tmp_path: Path) -> None:
    write_instance(tmp_path / "mug" / "one", NAMES)
    Image.new("RGB", (8, 8)).save(tmp_path / "mug" / "one" / "secret.jpg")
    listing = tmp_path / "mug" / "one" / "sparse" / "0" / "images.txt"
    listing.write_text(text_of(("../secret.jpg", *NAMES, "./0.jpg")))
    frames, problems = read_all(tmp_path)
    assert len(frames) == 3
    assert [("no path below images" in text, "registered twice" in text) for text in problems] == [
        (True, False),
        (False, True),
    ]


def test_a_link_may_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_instance(tmp_path / "elsewhere" / "mug" / "one", NAMES)
    (tmp_path / "root" / "mug").mkdir(parents=True)
    (tmp_path / "root" / "mug" / "two").symlink_to(tmp_path / "elsewhere" / "mug" / "one")
    frames, problems = read_all(tmp_path / "root")
    assert (len(frames), problems) == (3, [])


# Names on disk


def test_hidden_names_are_no_instances_and_no_frames(tmp_path: Path) -> None:
    root = tmp_path / ".cache" / "_data"
    for folder in ("mug/one", "mug/.two", "_mug/one", "__MACOSX/mug", ".ipynb_checkpoints/one"):
        write_instance(root / folder, NAMES)
    for name in ("dog/0.jpg", "dog/1.jpg", "dog/._0.jpg", "dog/.ipynb_checkpoints/0.jpg", ".Trash/0.jpg", "_old/0.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(scene(1)))
    frames, problems = read_all(root)
    assert sorted({(row["category"], row["instance"]) for row in frames}) == [("dog", "_data/dog"), ("mug", "one")]
    assert (len(frames), problems) == (5, [])


@pytest.mark.parametrize(
    ("folder", "instance"),
    [
        (b"mug/caf\xe9", r"caf\xe9"),
        ("mug/杯子".encode("gbk"), r"\xb1\xad\xd7\xd3"),
        (b"mug/two\nlines", r"two\nlines"),
        (b"mug/a'b\"c", "a'b\"c"),
        ("mug/杯子 🫖".encode(), "杯子 🫖"),
        (b"mug/" + b"x" * 255, "x" * 255),
    ],
)
def test_instances_with_any_name_are_read(folder: bytes, instance: str, tmp_path: Path) -> None:
    write_instance(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder)), NAMES)
    frames, problems = read_all(tmp_path)
    assert {row["instance"] for row in frames} == {instance}
    assert (len(frames), problems) == (3, [])


def test_a_class_whose_name_is_not_text_is_left_out_with_a_reason(tmp_path: Path) -> None:
    subjects = [b"mug1", b"caf\xe9 cup2", "杯子1".encode("gbk"), "杯子1".encode()]
    for subject in subjects:
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + subject))
        folder.mkdir()
        for name in (b"0.jpg", b"caf\xe9.jpg"):
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(encode(scene(1)))
    frames, problems = read_all(tmp_path)
    assert {row["category"] for row in frames} == {"mug", "杯子"}
    assert len({row["frame_id"] for row in frames}) == len(frames) == 4
    assert len(problems) == 2
    assert all(text.endswith("the name of its class is not UTF-8; rename the folder") for text in problems)
    assert r"caf\xe9 cup2" in "".join(problems)
    "".join(problems).encode()


def test_problems_with_any_name_can_be_printed(tmp_path: Path) -> None:
    folder = tmp_path / "mug" / os.fsdecode(b"\xe9\n")
    write_instance(folder, (os.fsdecode(b"\xff.jpg"), *NAMES))
    (folder / "images" / os.fsdecode(b"\xff.jpg")).write_bytes(b"text")
    (problem,) = read_all(tmp_path)[1]
    assert problem.startswith(r"the frame mug/\xe9\n/\xff.jpg: the picture is not a picture")


def test_line_breaks_in_a_class_are_spaces(tmp_path: Path) -> None:
    write_instance(tmp_path / "toy\ncar" / "one", NAMES)
    assert {row["category"] for row in read_all(tmp_path)[0]} == {"toy car"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_names_of_classes_are_read_by_their_mark(encoding: str, tmp_path: Path) -> None:
    write_instance(tmp_path / "0" / "one", NAMES)
    (tmp_path / "mvimgnet_category.txt").write_bytes("0,Teekännchen\n1,mug\n".encode(encoding))
    assert find_instances([tmp_path])[0][0].category == "teekännchen"


def test_unusable_roots_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="there is no folder"):
        find_all([tmp_path / "missing"])
    write_instance(tmp_path / "_hidden" / "one", NAMES)
    with pytest.raises(StageError, match=r'names that start with "\." or "_" do not count'):
        find_all([tmp_path])
    (tmp_path / "mvimgnet_category.txt").write_bytes("0,Teekännchen".encode("cp1252"))
    with pytest.raises(StageError, match=r"multiview\.folders: .*mvimgnet_category\.txt .*save it as UTF-8"):
        find_all([tmp_path])


def test_a_model_that_is_not_there_is_one_lost_instance(tmp_path: Path) -> None:
    (tmp_path / "mug" / "one" / "images").mkdir(parents=True)
    (instance,), _ = find_instances([tmp_path])
    (row,) = read_instance(instance, 64, 0.02)
    assert row == {
        "problem": "the instance mug/one: neither sparse/0 nor sparse has images.bin or images.txt",
        "is_instance": True,
    }
