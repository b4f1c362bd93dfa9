"""The policy for pictures: what is accepted, what is refused and why, and what the pixels become."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from model.pictures.decoding import (
    PictureError,
    load_picture,
    load_reduced,
    open_picture,
    picture_files,
    to_png,
)
from tests.support.hostile_web import bodies, png, sixteen_bits
from tests.support.picture_files import encode, scene

BODIES = bodies()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def grainy(**options: Any) -> bytes:
    """A JPEG of 256 x 256 with coefficients of all frequencies."""
    rng = np.random.default_rng(0)
    pixels = np.asarray(scene(1, 256), dtype=np.int16) + rng.integers(-20, 20, (256, 256, 1))
    return encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "JPEG", quality=90, **options)


GRAINY = {progressive: grainy(progressive=progressive) for progressive in (False, True)}


def reason_of(data: bytes) -> str:
    """Why a picture is refused; "" for one that is accepted."""
    try:
        load_picture(data)
    except PictureError as error:
        return error.detail.partition(":")[0]
    return ""


def header_reason(data: bytes) -> str:
    """As `reason_of`, for a picture that is opened and not decoded."""
    try:
        with open_picture(data):
            return ""
    except PictureError as error:
        return error.detail.partition(":")[0]


# What is accepted


def test_plain_pictures_come_back(tmp_path: Path) -> None:
    picture = noise(7, 5)
    (tmp_path / "a.png").write_bytes(to_png(picture))
    for source in (to_png(picture), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert load_picture(source).tobytes() == picture.tobytes()


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("LA", "PNG")])
def test_other_modes_become_rgb(mode: str, kind: str) -> None:
    loaded = load_picture(encoded(noise(6, 4).convert(mode), kind))
    assert (loaded.mode, loaded.size) == ("RGB", (6, 4))


def test_transparent_parts_become_white() -> None:
    picture = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    picture.putpixel((1, 0), (10, 20, 30, 0))
    loaded = load_picture(encoded(picture))
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]
    palette = Image.new("P", (1, 1), 0)
    assert load_picture(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_to_eight(channels: int) -> None:
    assert np.abs(np.asarray(load_picture(sixteen_bits(channels)), np.int16) - 128).max() <= 1


@pytest.mark.parametrize(("kind", "colours"), [("GIF", ("red", "blue")), ("WEBP", ("red", "blue")), ("PNG", "rb")])
def test_of_an_animation_the_first_frame_is_used(kind: str, colours: tuple[str, ...]) -> None:
    frames = [Image.new("RGB", (8, 8), {"r": "red", "b": "blue"}.get(name, name)) for name in colours]
    loaded = load_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    red, _, blue = np.asarray(loaded)[4, 4]
    assert (red > 200, blue < 60) == (True, True)


def test_of_a_phone_jpeg_the_first_picture_is_used() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert np.asarray(load_picture(data))[4, 4, 0] > 200


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 2, 3), dtype=np.uint8)).resize((32, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, kind, exif=exif)
    with Image.open(BytesIO(data)) as tagged:
        expected = ImageOps.exif_transpose(tagged).convert("RGB")
    loaded = load_picture(data)
    assert (loaded.size, loaded.tobytes()) == (expected.size, expected.tobytes())
    assert load_picture(encoded(loaded)).tobytes() == loaded.tobytes()


def test_the_pictures_of_a_folder(tmp_path: Path) -> None:
    for name in ("c.gif", "a.jpg", "b.JPEG", "d.png", "e.webp", "f.bmp", "g.tiff", "h.txt", "jpg", "._a.jpg", "_b.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.jpg").touch()
    (tmp_path / "nowhere.jpg").symlink_to("nothing")
    (tmp_path / "link.png").symlink_to("a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    names = [path.name for path in picture_files(tmp_path)]
    assert names == ["a.jpg", "b.JPEG", "c.gif", "d.png", "e.webp", "link.png"]
    assert picture_files(tmp_path / "missing") == []


# What is refused


@pytest.mark.parametrize("kind", BODIES)
def test_every_body_is_accepted_or_has_its_reason(kind: str) -> None:
    reason, data = BODIES[kind]
    assert reason_of(data) == ("" if reason in ("too_small", "aspect_ratio") else reason)


@pytest.mark.parametrize(
    ("data", "detail", "message"),
    [
        (encode(scene(1))[:-200], "decode: ", "truncated or damaged"),
        (b"text", "wrong_type: starts with b'text'", "JPEG, PNG, WebP, GIF"),
        (b"", "wrong_type: starts with b''", "JPEG, PNG, WebP, GIF"),
        (png(12_000, 12_000, 8, 2, b""), "too_many_pixels: 12000 x 12000 > 64000000", "12000 x 12000"),
    ],
)
def test_an_error_has_a_sentence_for_users_and_a_detail_for_datasets(data: bytes, detail: str, message: str) -> None:
    with pytest.raises(PictureError, match=f"^the picture .*{message}") as caught:
        load_picture(data)
    assert caught.value.detail.startswith(detail)
    copy = pickle.loads(pickle.dumps(caught.value))  # it crosses processes
    assert (str(copy), copy.detail) == (str(caught.value), caught.value.detail)


def test_an_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    for file in (tmp_path / "text.png", tmp_path / "missing.png", tmp_path):
        with pytest.raises(PictureError, match=str(file)):
            load_picture(file)


def test_the_limit_of_pixels_is_checked_on_the_header() -> None:
    data = to_png(noise(20, 10))
    assert load_picture(data, max_pixels=200).size == (20, 10)
    for refused in (data, data[:60]):  # no pixel of the second could be decoded
        with pytest.raises(PictureError) as caught:
            load_picture(refused, max_pixels=199)
        assert caught.value.detail == "too_many_pixels: 20 x 10 > 199"


@given(body=st.sampled_from([body for _, body in BODIES.values()]), place=st.floats(0, 1), bits=st.integers(1, 255))
def test_a_header_with_a_flipped_byte_is_read_or_refused_for_a_reason(body: bytes, place: float, bits: int) -> None:
    damaged = bytearray(body or b"\0")
    damaged[int(place * (min(len(damaged), 64) - 1))] ^= bits
    assert header_reason(bytes(damaged)) in ("", "wrong_type", "decode", "too_many_pixels")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
def test_each_header_of_a_webp_is_checked_before_its_canvas_is_made(options: dict[str, Any]) -> None:
    data = encoded(noise(120, 90), "WEBP", **options)
    load_picture(data, max_pixels=10_800)
    with pytest.raises(PictureError) as caught:
        load_picture(data, max_pixels=10_799)
    assert caught.value.detail == "too_many_pixels: 120 x 90 > 10799"


@given(data=st.binary(max_size=60), cut=st.integers(0, 900), flips=st.lists(st.integers(0, 2000), max_size=5))
def test_damaged_pictures_are_decoded_or_refused(data: bytes, cut: int, flips: list[int]) -> None:
    whole = bytearray(encode(scene(3)) if len(data) % 2 else to_png(scene(3)))
    for place in flips:
        whole[place % len(whole)] ^= 0x55
    for damaged in (data, bytes(whole[: len(whole) - cut])):
        with contextlib.suppress(PictureError):
            assert load_picture(damaged).mode == "RGB"


# Decoding at reduced size


@given(
    cut=st.integers(0, 3000),
    flips=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 255)), max_size=4),
    progressive=st.booleans(),
)
def test_a_jpeg_is_damaged_at_reduced_size_if_and_only_if_it_is_in_full(
    cut: int, flips: list[tuple[int, int]], progressive: bool
) -> None:
    data = bytearray(GRAINY[progressive])
    for place, mask in flips:
        data[place % len(data)] ^= mask
    damaged = bytes(data[: len(data) - cut])
    reason = reason_of(damaged)
    if reason:
        with pytest.raises(PictureError, match=r"^the picture") as caught:
            load_reduced(damaged, 64)
        assert caught.value.detail.partition(":")[0] == reason
    else:
        small = load_reduced(damaged, 64)
        assert small.mode == "RGB"
        assert min(small.size) >= min(64, *load_picture(damaged).size)


def test_a_reduced_picture_is_the_whole_one_averaged() -> None:
    whole = Image.open(BytesIO(GRAINY[False]))
    small = np.asarray(load_reduced(GRAINY[False], 64), dtype=float)
    assert small.shape == (64, 64, 3)
    assert np.abs(small - np.asarray(whole.reduce(4), dtype=float)).mean() < 1.5
    assert load_reduced(encode(scene(1, 100)), 64).size == (100, 100)
    assert load_reduced(to_png(scene(1, 200)), 64).size == (200, 200)


def test_decoding_needs_no_torch() -> None:
    code = "import sys, model.pictures.decoding, stages.data.jpeg; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
