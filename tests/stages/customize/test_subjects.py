"""The subjects of the stage `customize`: folders as users have them, captions, and the microworld's subjects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.contract import Reporter, StageError
from stages.customize.config import CustomizeConfig
from stages.customize.rich_prompts import rich_prompts
from stages.customize.subjects import Subject, find_subjects, read_captions, read_pictures
from tests.support.prompt_sets import write_prompts
from tests.support.subject_folder import write_subjects


def find(inputs: Mapping[str, Path], **settings: Any) -> list[Subject]:
    return find_subjects(CustomizeConfig(**settings), inputs, Reporter(emit=lambda event: None))


def a_subject() -> Subject:
    return Subject(name="one", word="toy", placeholder="[v]", files=[])


def test_held_out_subjects_of_one_word_follow_each_other(tmp_path: Path) -> None:
    write_subjects(tmp_path / "subjects", {"test-1": "toy", "test-2": "mug", "test-3": "toy"})
    inputs = {"microworld": tmp_path}
    found = find(inputs, words=["toy", "mug", "toy"])
    assert [subject.name for subject in found] == ["test-1", "test-2", "test-3"]
    assert [subject.placeholder for subject in found] == ["[v1]", "[v2]", "[v3]"]
    assert [len(find(inputs, words=["toy"], pictures=kind)[0].files) for kind in ("views", "album")] == [3, 1]
    for words in (["duck"], ["mug", "mug"]):
        with pytest.raises(StageError, match=rf"held-out '{words[0]}': set customize.words to"):
            find(inputs, words=words)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"is not a folder: set customize\.subjects"):
        find({}, subjects=[str(tmp_path / "nowhere")], words=["mug"])
    with pytest.raises(StageError, match="has no picture"):
        find({}, subjects=[str(tmp_path)], words=["mug"])


def test_folders_of_one_name_are_different_subjects(tmp_path: Path) -> None:
    folders = [tmp_path / place / name for place, name in (("a", "mug"), ("b", "mug"), ("c", "Mug"), ("d", "mug-2"))]
    for folder in folders:
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(folder / "1.png")
    names = [subject.name for subject in find({}, subjects=[str(folder) for folder in folders], words=["mug"] * 4)]
    assert len({name.casefold() for name in names}) == 4
    assert names[:2] == ["mug", "mug-2"]


def test_the_caption_of_a_picture_is_beside_it(tmp_path: Path) -> None:
    pictures = [tmp_path / "a.PNG", tmp_path / "b.jpg"]
    (tmp_path / "a.txt").write_text(" a toy\non the beach ")
    with pytest.raises(StageError, match=r"customize\.prompts=captions needs the text file .*b\.txt"):
        read_captions(pictures, a_subject())
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(StageError, match=r"b\.txt"):
        read_captions(pictures, a_subject())
    (tmp_path / "b.txt").write_text("a [v] toy")
    assert read_captions(pictures, a_subject()) == ("a toy on the beach", "a [v] toy")


def test_rich_prompts_are_about_the_word(tmp_path: Path) -> None:
    """Tailored ones first, then the word's own, then those of other words."""
    write_prompts(tmp_path, concepts=("mug", "coffee mug"))
    own = rich_prompts(tmp_path, "coffee mug", "<c>")
    assert len(own) == 6
    assert all("a <c> coffee mug" in prompt for prompt in own)
    assert len(rich_prompts(tmp_path, "toy", "[v]")) == 12
    assert all("[v] toy" in prompt for prompt in rich_prompts(tmp_path, "toy", "[v]"))
    write_prompts(tmp_path, "tailored", ("toy",))
    assert len(rich_prompts(tmp_path, "toy", "[v]")) == 6
    for spelling in ("Toy", "TOY", " toy "):
        assert rich_prompts(tmp_path, spelling, "[v]") == rich_prompts(tmp_path, "toy", "[v]")
    assert len(rich_prompts(tmp_path, "mug", "[v]")) == 6


def test_rich_prompts_without_spaces_are_about_another_word(tmp_path: Path) -> None:
    write_prompts(tmp_path, concepts=("狗",), template="一只[v]{concept}在雪里 {background}")
    assert rich_prompts(tmp_path, "mug", "<c>")[0].startswith("一只<c> mug在雪里")


#: What a user's folder may hold, besides four pictures: the content, and whether it is used, left out or not mentioned.
FOLDERS: dict[str, tuple[str, bytes | Image.Image, str]] = {
    "a wide picture": ("x.png", Image.new("RGB", (300, 40), "red"), "used"),
    "a tiny picture": ("x.png", Image.new("RGB", (3, 5), "red"), "used"),
    "grey": ("x.jpg", Image.new("L", (70, 90), 128), "used"),
    "16 bits": ("x.png", Image.new("I;16", (70, 90), 40000), "used"),
    "alpha": ("x.png", Image.new("RGBA", (70, 90), (255, 0, 0, 0)), "used"),
    "grey with alpha": ("x.png", Image.new("LA", (70, 90), (255, 0)), "used"),
    "a palette": ("x.gif", Image.new("P", (70, 90), 3), "used"),
    "black and white": ("x.png", Image.new("1", (70, 90), 1), "used"),
    "CMYK": ("x.jpg", Image.new("CMYK", (70, 90), (0, 255, 0, 0)), "used"),
    "WebP": ("x.webp", Image.new("RGB", (70, 90), "blue"), "used"),
    "a suffix in upper case": ("X.JPG", Image.new("RGB", (70, 90), "blue"), "used"),
    "a PNG named .jpg": ("x.jpg", b"PNG", "used"),
    "empty": ("x.jpg", b"", "left out"),
    "text": ("x.jpg", b"no picture", "left out"),
    "a web page": ("x.png", b"<html></html>", "left out"),
    "cut off": ("x.png", b"CUT", "left out"),
    "HEIC named .jpg": ("x.jpg", b"\0\0\0\x18ftypheic", "left out"),
    "HEIC": ("x.heic", b"\0\0\0\x18ftypheic", "left out"),
    "a TIFF": ("x.tif", b"II*\0", "left out"),
    "a name that starts with _": ("_x.png", b"PNG", "left out"),
    "a hidden file": (".x.png", b"", "not mentioned"),
    "a Windows database": ("Thumbs.db", b"", "not mentioned"),
    "notes": ("notes.txt", b"my cat", "not mentioned"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "outcome"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_as_users_have_them(name: str, content: Any, outcome: str, tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (80, 60 + number)).save(tmp_path / f"{number}.png")
    png = (tmp_path / "0.png").read_bytes()
    if isinstance(content, Image.Image):
        content.save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes({b"PNG": png, b"CUT": png[:-30]}.get(content, content))
    pictures, warnings = read_folder(tmp_path)
    assert len(pictures) == (5 if outcome == "used" else 4)
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (32, 32))}
    assert len(warnings) == (outcome == "left out")
    assert all("left out" in warning and name in warning for warning in warnings)


def read_folder(folder: Path) -> tuple[list[Image.Image], list[str]]:
    events: list[Mapping[str, Any]] = []
    report = Reporter(emit=events.append)
    (subject,) = find_subjects(CustomizeConfig(subjects=[str(folder)], words=["cat"]), {}, report)
    pictures = read_pictures(subject, 32, report)
    return list(pictures.values()), [event["text"] for event in events]


def test_a_picture_is_upright_and_the_first_six_are_read(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 40), "red")
    picture.paste("blue", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for number in range(8):
        picture.save(tmp_path / f"{number}.jpg", exif=exif)
    (tmp_path / "1.jpg").write_bytes(b"")
    pictures, warnings = read_folder(tmp_path)
    assert len(pictures) == 6
    assert [("1.jpg" in warning) for warning in warnings] == [True]
    red, _, blue = np.asarray(pictures[0])[4, 16]
    assert red > 200 > 50 > blue


def test_one_picture_is_said_and_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(StageError, match=r"no picture of the subject .* can be read.*a\.png"):
        read_folder(tmp_path)
    Image.new("RGB", (80, 60)).save(tmp_path / "b.png")
    pictures, warnings = read_folder(tmp_path)
    assert len(pictures) == 1
    assert len(warnings) == 2
    assert "has one picture" in warnings[1]
