"""Names that are no data, and text in the encodings that other programs write."""

import os
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.files import (
    TextError,
    decode_text,
    decode_with_losses,
    is_hidden,
    is_utf8,
    printable_name,
    read_text,
    text_damage,
    visible_entries,
    visible_files,
)

SENTENCE = "a café mug in the snow, 雪の中"

READABLE = {
    "utf-8": SENTENCE.encode(),
    "utf-8 with a mark": b"\xef\xbb\xbf" + SENTENCE.encode(),
    "utf-8 with two marks": b"\xef\xbb\xbf\xef\xbb\xbf" + SENTENCE.encode(),
    "utf-16 little endian": b"\xff\xfe" + SENTENCE.encode("utf-16-le"),
    "utf-16 big endian": b"\xfe\xff" + SENTENCE.encode("utf-16-be"),
    "utf-32 little endian": b"\xff\xfe\0\0" + SENTENCE.encode("utf-32-le"),
    "utf-32 big endian": b"\0\0\xfe\xff" + SENTENCE.encode("utf-32-be"),
}
UNREADABLE = {
    "cp1252": "a café mug".encode("cp1252"),
    "latin-1 quotes": b"\x93a mug\x94",
    "gbk": "雪の中".encode("gb18030"),
    "shift-jis": "雪の中".encode("shift-jis"),
    "utf-16 without a mark": "a mug".encode("utf-16-le"),
    "utf-16 with half a character": b"\xff\xfea\0m",
    "utf-8 cut in a character": "café".encode()[:-1],
    "replacement character": "a caf\ufffd mug".encode(),
    "nul": b"a\0mug",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("data", READABLE.values(), ids=READABLE)
def test_text_is_decoded_by_its_mark(data: bytes) -> None:
    assert decode_text(data) == SENTENCE


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_text_that_cannot_be_decoded_is_refused(data: bytes) -> None:
    with pytest.raises(TextError):
        decode_text(data)


@pytest.mark.parametrize("data", [b"\xff\xfea\0\0\xd8", *UNREADABLE.values()])
def test_what_is_read_of_damaged_text_shows_the_damage(data: bytes) -> None:
    assert text_damage(decode_with_losses(data))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufffd\ufeff")))
def test_every_sound_text_comes_back(text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert decode_text(text.encode(encoding)) == text


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "caption.txt").write_bytes(b"caf\xe9")
    with pytest.raises(TextError, match=r"caption\.txt .*UTF-8.*save it as UTF-8"):
        read_text(tmp_path / "caption.txt")


@pytest.mark.parametrize(
    "path",
    [
        "._0.jpg",
        "_temporary/0/a.parquet",
        "a/.ipynb_checkpoints/b.png",
        "__MACOSX/a/b.png",
        "_SUCCESS",
        "x/.git",
        "..b",
    ],
)
def test_hidden_paths(path: str) -> None:
    assert is_hidden(PurePath(path))


@pytest.mark.parametrize("path", ["a.jpg", "a_b/c.d/e.png", "0._jpg", "./a.png", "../a.png"])
def test_other_paths(path: str) -> None:
    assert not is_hidden(PurePath(path))


def test_the_folder_itself_may_be_hidden(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "_data"
    for name in ("b.png", "a/c.png", "._b.png", "_a/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert [str(path.relative_to(folder)) for path in visible_entries(folder, "**/*.png")] == ["a/c.png", "b.png"]


def test_all_visible_files_below_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "_data"
    for name in (b"b/c", b"a", b"_b/c", b"b/.c", b"b/_d/e", b"caf\xe9/\xff\n", b"../elsewhere/f"):
        file = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "circle").symlink_to(folder)
    (tmp_path / "elsewhere" / "circle").symlink_to(folder / "b")
    (folder / "itself").symlink_to("itself")
    (folder / "nowhere").symlink_to("nothing")
    os.mkfifo(folder / "pipe")
    found = [os.fsencode(path.relative_to(folder)) for path in visible_files(folder)]
    assert found == [b"a", b"b/c", b"caf\xe9/\xff\n", b"link/circle/c", b"link/f"]
    assert list(visible_files(tmp_path / "missing")) == []


PRINTABLE = {
    b"mug 1.jpg": "mug 1.jpg",
    "Teekännchen, \u676f\u5b50".encode(): "Teekännchen, \u676f\u5b50",
    "क्\u200dष".encode(): "क्\u200dष",  # joiners belong to the script
    b"caf\xe9": r"caf\xe9",
    "\u676f\u5b50".encode("gbk"): r"\xb1\xad\xd7\xd3",
    b"two\nlines\t": r"two\nlines\t",
    b"\x1b[31mred": r"\x1b[31mred",
    b"back\\slash": r"back\\slash",
    "line\u2028separator".encode(): r"line\u2028separator",
    b"100%#?&'\"<b>": "100%#?&'\"<b>",
}


@pytest.mark.parametrize(("name", "expected"), PRINTABLE.items(), ids=PRINTABLE.values())
def test_names_on_disk_become_text(name: bytes, expected: str) -> None:
    assert printable_name(os.fsdecode(name)) == expected
    assert is_utf8(os.fsdecode(name)) == (name not in (b"caf\xe9", "\u676f\u5b50".encode("gbk")))


@given(st.lists(st.binary(min_size=1, max_size=4), min_size=2, max_size=2, unique=True))
def test_different_names_stay_different(names: list[bytes]) -> None:
    first, second = (printable_name(os.fsdecode(name)) for name in names)
    assert first != second
    assert (first + second).encode()
