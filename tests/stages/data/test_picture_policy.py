"""Every way in accepts the same pictures, refuses the same, and sees the same pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.errors import ModelError
from model.painting.preparation import SubjectReader
from model.pictures.containers import take_apart
from model.pictures.crops import square_crop
from model.pictures.decoding import MAX_PIXELS, load_picture, picture_format
from stages.contract import Reporter, StageError
from stages.customize.subjects import Subject, read_pictures
from stages.data.jpeg import encode_jpeg
from stages.evaluate.cases import read_subject
from stages.evaluate.grids import resize_square
from stages.filter.adoption import adopt_row
from stages.filter.candidate import Candidate
from stages.filter.config import FilterConfig
from stages.filter.foreign_rows import ForeignRow
from stages.filter.rules import active_rules, rejection
from stages.ingest.config import IngestConfig
from stages.ingest.resizer import CheckedResizer, Resized, decodable
from stages.multiview.frames import load_frame
from tests.support.hostile_web import bodies, encode, sixteen_bits
from tests.support.picture_files import scene
from tests.support.picture_table import picture_table

SIDE = 48
_NO_LIMITS = FilterConfig(
    min_side=None, max_aspect_ratio=None, min_caption_words=None, max_caption_characters=None, min_aesthetic=None,
    min_similarity=None, max_unsafe=None, max_watermark=None, min_contrast=None,
)  # fmt: skip


def load_picture_or_bmp(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)) if data[:2] == b"BM" else load_picture(data)


# The ways in: each takes a file and returns whether it accepts it.


def ingest(file: Path) -> bool:
    """Our part of the stage. Pillow stands for OpenCV, which decodes plain pictures."""

    def resize(stream: io.BytesIO, boxes: Any) -> Resized:
        load_picture_or_bmp(stream.getvalue())
        return b"", 1, 1, 1, 1, None

    return CheckedResizer(resize, MAX_PIXELS)(io.BytesIO(file.read_bytes()))[5] is None


def pictures_folder(file: Path) -> bool:
    """`filter.pictures_folder`: the row is taken over, and the rules let it pass."""
    row = adopt_row(ForeignRow(origin="here", picture=file.read_bytes(), fields={"caption": "a red cup"}))
    return "reason" not in row and rejection(Candidate(row), active_rules(_NO_LIMITS)) is None


def multiview(file: Path) -> bool:
    return without_error(lambda: load_frame(file, SIDE))


def customizing(file: Path) -> bool:
    return without_error(lambda: customize_pictures(file))


def customize_pictures(file: Path) -> list[Image.Image]:
    subject = Subject(name="cup", word="cup", placeholder="[v]", files=[file])
    return list(read_pictures(subject, SIDE, Reporter(emit=lambda event: None)).values())


def evaluation(file: Path) -> bool:
    return without_error(lambda: read_subject("cup", "cup", [file, file]))


def serving(file: Path) -> bool:
    """A request's subject, of the server or of the registered model."""
    return without_error(lambda: SubjectReader((SIDE, SIDE)).read(1, {"picture": file.read_bytes(), "word": "cup"}))


def without_error(action: Callable[[], object]) -> bool:
    try:
        action()
    except (ModelError, StageError):
        return False
    return True


WAYS_IN = (ingest, pictures_folder, multiview, customizing, evaluation, serving)


def huge(data: bytes) -> bytes:
    """A PNG whose header says 12,000 x 12,000."""
    changed = bytearray(data)
    changed[16:24] = struct.pack(">II", 12_000, 12_000)
    changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    return bytes(changed)


def saved(mode: str, kind: str, orientation: int, frames: int) -> bytes:
    picture = scene(1, SIDE)
    if mode in ("RGBA", "LA"):
        picture.putalpha(scene(2, SIDE).convert("L"))
    options: dict[str, Any] = {}
    if orientation and kind != "GIF":
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    if frames > 1 and kind in ("GIF", "WEBP", "PNG"):
        options |= {"save_all": True, "append_images": [Image.new("RGB", (SIDE, SIDE)).convert(mode)] * (frames - 1)}
    return encode(picture.convert(mode), kind, **options)


_FORMATS = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "LA", "RGBA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "RGBA"),
    "BMP": ("RGB",),
    "TIFF": ("RGB", "CMYK"),
}


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Encoded pictures of every kind, some of them damaged."""
    kind = draw(st.sampled_from(list(_FORMATS)))
    mode = draw(st.sampled_from(_FORMATS[kind]))
    data = sixteen_bits(1) if mode == "I;16" else saved(mode, kind, draw(st.integers(0, 9)), draw(st.integers(1, 3)))
    damage = draw(st.sampled_from(["none", "none", "truncated", "flipped", "huge"]))
    if damage == "truncated":
        return data[: draw(st.integers(0, len(data)))]
    if damage == "flipped":
        changed = bytearray(data)
        changed[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
        return bytes(changed)
    return huge(data) if damage == "huge" and kind == "PNG" else data


@settings(max_examples=60, deadline=None)
@given(data=files())
def test_every_way_in_gives_the_same_verdict(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "picture.png"  # the suffix says nothing about the content
    file.write_bytes(data)
    expected = without_error(lambda: load_picture(file))
    assert {way.__name__: way(file) for way in WAYS_IN} == {way.__name__: expected for way in WAYS_IN}


def test_there_is_one_limit_of_pixels() -> None:
    assert IngestConfig().max_pixels == MAX_PIXELS


def test_no_way_in_opens_a_webp_with_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow allocates the whole canvas when it opens one; and reading its EXIF data means to open it."""
    file = tmp_path / "bomb.webp"
    file.write_bytes(bodies()["bomb_webp"][1] + b"EXIF")
    opened: list[Any] = []
    monkeypatch.setattr(Image, "open", lambda *arguments, **_: opened.append(arguments))
    assert not any(way(file) for way in WAYS_IN)
    assert not opened


@pytest.mark.parametrize("kind", bodies())
def test_every_way_in_sees_the_same_pixels(kind: str, tmp_path: Path) -> None:
    reason, data = bodies()[kind]
    if reason:
        return
    file = tmp_path / "picture"
    file.write_bytes(data)
    expected = load_picture(file)
    stored = data if kind in ("jpeg", "broken_exif") else encode_jpeg(expected)
    row = adopt_row(ForeignRow(origin="here", picture=data, fields={"caption": "a cup"}))
    assert load_picture_or_bmp(decodable(data, MAX_PIXELS)).tobytes() == expected.tobytes()
    assert row["picture"] == stored
    assert load_frame(file, 1000) == (stored, expected.size)


TABLE = picture_table()


@pytest.mark.parametrize("name", TABLE)
def test_every_way_in_sees_what_a_file_means(name: str, tmp_path: Path) -> None:
    """What the datasets store shows the same to readers that know nothing of profiles, opacity and orientation."""
    data, file = TABLE[name].data, tmp_path / "picture"
    file.write_bytes(data)
    expected = load_picture(file)
    assert naively(decodable(data, MAX_PIXELS)).tobytes() == expected.tobytes()
    stored = adopt_row(ForeignRow(origin="here", picture=data, fields={"caption": "a cup"}))["picture"]
    assert load_frame(file, 1000) == (stored, expected.size)
    assert naively(stored).tobytes() == naively(data if stored == data else encode_jpeg(expected)).tobytes()
    if stored == data:
        assert naively(data).tobytes() == expected.tobytes()
    assert customize_pictures(file)[0].tobytes() == square_crop(expected, 0.5, 0.5, SIDE).tobytes()
    assert resize_square(data, SIDE).tobytes() == expected.resize((SIDE, SIDE), Image.Resampling.LANCZOS).tobytes()
    assert evaluation(file)
    assert serving(file)


def naively(data: bytes) -> Image.Image:
    """As a decoder finds it that reads nothing but pixels."""
    if data[:2] == b"BM":
        return Image.open(io.BytesIO(data))
    return Image.open(io.BytesIO(take_apart(data, picture_format(data) or "").pixels)).convert("RGB")
