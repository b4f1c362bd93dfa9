"""Picture files of all kinds, each with the pixels that every part of the project must see.

The expected pixels are stated with NumPy: alpha composited on white, samples divided, colours by their definitions.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from tests.support import icc_profiles as icc
from tests.support.file_parts import (
    chunk,
    encode,
    exif,
    orientation,
    raw_png,
    segment,
    with_chunks,
    with_segments,
)

Pixels = NDArray[np.float64]
SIDE = 48
#: Four patches, which sRGB and all wider spaces have.
COLOURS = np.array([[[200, 70, 60], [60, 160, 90]], [[70, 90, 190], [128, 128, 128]]])
LEVELS = np.array([[30, 90], [150, 220]])


@dataclass(frozen=True)
class Case:
    """A file, its pixels (height, width, 3) in [0, 255], and by how many levels a decoder may differ."""

    data: bytes
    expected: Pixels
    tolerance: float = 1.5


def patches(values: NDArray[Any]) -> NDArray[Any]:
    """A picture with a patch of SIDE / 2 pixels for each of 2 x 2 values."""
    return np.repeat(np.repeat(values, SIDE // 2, axis=0), SIDE // 2, axis=1)


RGB = patches(COLOURS).astype(np.float64)
GREY = patches(LEVELS).astype(np.float64)
ALPHA = patches(np.array([[0, 255], [128, 255]]))


def on_white(colours: Pixels, alpha: NDArray[Any]) -> Pixels:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def grey_rgb(levels: NDArray[Any]) -> Pixels:
    return np.repeat(levels[..., None].astype(np.float64), 3, axis=-1)


def transparent() -> dict[str, Case]:
    hidden = RGB * (ALPHA[..., None] > 0)  # black where nothing is to be seen
    rgba = np.concatenate([hidden, ALPHA[..., None]], axis=-1).astype(np.uint8)
    la = np.stack([GREY * (ALPHA > 0), ALPHA], axis=-1).astype(np.uint8)
    index = patches(np.array([[0, 1], [2, 3]])).astype(np.uint8)
    palette = Image.frombytes("P", (SIDE, SIDE), index.tobytes())
    palette.putpalette(COLOURS.reshape(-1).tolist())
    first_is_clear, alphas = patches(np.array([[0, 255], [255, 255]])), patches(np.array([[0, 100], [200, 255]]))
    clear_rgb, clear_grey = on_white(RGB, first_is_clear), on_white(grey_rgb(GREY), first_is_clear)
    bits = patches(np.array([[0, 1], [1, 1]]))
    two_bits, deep = patches(np.array([[1, 0], [2, 3]])), patches(LEVELS * 257 + np.array([[7, 0], [0, 0]]))
    still = Image.fromarray(rgba, "RGBA")
    moving = {"save_all": True, "append_images": [Image.new("RGBA", (SIDE, SIDE), "red")]}
    gif = bytearray(encode(palette, "GIF"))
    gif[6:10] = struct.pack("<HH", SIDE + 10, SIDE + 6)  # larger than its frame
    around = np.full((SIDE + 6, SIDE + 10, 3), 255.0)
    around[:SIDE, :SIDE] = RGB
    return {
        "rgba png": Case(encode(rgba), on_white(hidden, ALPHA)),
        "rgba webp": Case(encode(still, "WEBP", lossless=True, exact=True), on_white(hidden, ALPHA)),
        "moving rgba webp": Case(encode(still, "WEBP", lossless=True, **moving), on_white(hidden, ALPHA)),
        "moving rgba png": Case(encode(still, "PNG", **moving), on_white(hidden, ALPHA)),
        "la png": Case(encode(Image.fromarray(la, "LA")), on_white(grey_rgb(GREY), ALPHA)),
        "palette png with one transparent colour": Case(encode(palette, transparency=0), clear_rgb),
        "palette png with opacities": Case(encode(palette, transparency=b"\0\x64\xc8\xff"), on_white(RGB, alphas)),
        "palette png with few opacities": Case(encode(palette, transparency=b"\0"), clear_rgb),
        "rgb png with a transparent colour": Case(encode(RGB, transparency=(200, 70, 60)), clear_rgb),
        "grey png with a transparent level": Case(encode(GREY, transparency=30), clear_grey),
        "1-bit png with a transparent level": Case(
            encode(Image.fromarray(bits.astype(bool)), transparency=0), np.full((SIDE, SIDE, 3), 255.0)
        ),
        "2-bit png with a transparent level": Case(
            raw_png(two_bits[..., None], 2, 0, chunk(b"tRNS", b"\0\1")),
            on_white(grey_rgb(two_bits * 85), first_is_clear),
        ),
        "16-bit grey png with a transparent level": Case(
            raw_png(deep[..., None], 16, 0, chunk(b"tRNS", struct.pack(">H", 30 * 257 + 7))), clear_grey
        ),
        "16-bit rgb png with a transparent colour": Case(
            raw_png(RGB * 257, 16, 2, chunk(b"tRNS", struct.pack(">3H", 200 * 257, 70 * 257, 60 * 257))), clear_rgb
        ),
        "transparent gif": Case(encode(palette, "GIF", transparency=0), clear_rgb),
        "gif larger than its frame": Case(bytes(gif), around),
    }  # fmt: skip


def deep() -> dict[str, Case]:
    alpha = ALPHA[..., None] * 257
    return {
        "16-bit grey png": Case(raw_png(GREY[..., None] * 257, 16, 0), grey_rgb(GREY)),
        "16-bit rgb png": Case(raw_png(RGB * 257, 16, 2), RGB),
        "16-bit grey-alpha png": Case(
            raw_png(np.concatenate([GREY[..., None] * 257, alpha], axis=-1), 16, 4), on_white(grey_rgb(GREY), ALPHA)
        ),
        "16-bit rgba png": Case(raw_png(np.concatenate([RGB * 257, alpha], axis=-1), 16, 6), on_white(RGB, ALPHA)),
        "16-bit grey png, all levels": Case(
            raw_png(np.arange(65536).reshape(256, 256, 1), 16, 0), grey_rgb(np.arange(65536).reshape(256, 256) / 257)
        ),
    }


def inks() -> tuple[NDArray[np.float64], NDArray[np.uint8], Pixels]:
    """A press: the Lab colours of its inks, four patches of full inks, and what they are in sRGB."""
    none_or_full = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1)
    light = 100 - none_or_full @ np.array([40.0, 45, 10, 85])
    green_red = none_or_full @ np.array([-20.0, 45, -5, 0])
    blue_yellow = none_or_full @ np.array([-30.0, -5, 60, 0])
    lab = np.stack([np.clip(light, 0, 100), green_red, blue_yellow], axis=-1)
    lab[..., 1, 1:] = 0
    lab[1, 1, 1, 1] = 0
    used = np.array([[[255, 0, 0, 0], [0, 255, 0, 0]], [[0, 0, 255, 0], [0, 0, 0, 0]]], dtype=np.uint8)
    found = [icc.lab_to_srgb(lab[tuple(ink // 255)]) for ink in used.reshape(4, 4).astype(int)]
    return lab, patches(used), patches(np.array(found).reshape(2, 2, 3))


def coloured() -> dict[str, Case]:
    adobe, p3 = icc.rgb_profile(icc.ADOBE_RGB, 2.19921875), icc.rgb_profile(icc.DISPLAY_P3, 2.2)
    prophoto, long = icc.rgb_profile(icc.PROPHOTO, 1.8), icc.rgb_profile(icc.ADOBE_RGB, 2.19921875, padding=150_000)
    in_adobe = patches(icc.stored(COLOURS.astype(float), icc.ADOBE_RGB, 2.19921875))
    in_p3 = patches(icc.stored(COLOURS.astype(float), icc.DISPLAY_P3, 2.2))
    in_prophoto = patches(icc.stored(COLOURS.astype(float), icc.PROPHOTO, 1.8))
    grey = patches(icc.stored_grey(LEVELS.astype(float), 1.8))
    adobe_rgba = np.concatenate([in_adobe, ALPHA[..., None]], axis=-1)
    palette = Image.frombytes("P", (SIDE, SIDE), patches(np.array([[0, 1], [2, 3]])).astype(np.uint8).tobytes())
    palette.putpalette(in_adobe[:: SIDE // 2, :: SIDE // 2].reshape(-1).tolist())
    lab, inked, seen = inks()
    press = Image.fromarray(inked, "CMYK")
    thin = 255 - np.minimum(inked[..., :3].astype(float) + inked[..., 3:], 255)
    mark = b"Exif\0\0" + exif(
        (0x8769, 4, 1, struct.pack("<I", 26)),
        extra=exif((0xA001, 3, 1, struct.pack("<H", 0xFFFF)), (0xA005, 4, 1, struct.pack("<I", 56)))[8:]
        + exif((1, 2, 4, b"R03\0"))[8:],
    )
    nikon = b"Exif\0\0" + exif(
        (0x8769, 4, 1, struct.pack("<I", 26)), extra=exif((0xA001, 3, 1, struct.pack("<H", 2)))[8:]
    )
    adobe_primaries = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
    linear = np.rint(255 * icc.linear(RGB / 255))
    linear_gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    return {
        "adobe rgb png": Case(encode(in_adobe, icc_profile=adobe), RGB),
        "adobe rgb jpeg": Case(encode(in_adobe, "JPEG", icc_profile=adobe), RGB, 4),
        "adobe rgb webp": Case(encode(in_adobe, "WEBP", lossless=True, icc_profile=adobe), RGB),
        "adobe rgb jpeg, profile in pieces": Case(encode(in_adobe, "JPEG", icc_profile=long), RGB, 4),
        "adobe rgb rgba png": Case(encode(adobe_rgba, icc_profile=adobe), on_white(RGB, ALPHA)),
        "adobe rgb palette png": Case(encode(palette, icc_profile=adobe), RGB),
        "adobe rgb 16-bit png": Case(
            raw_png(in_adobe.astype(int) * 257, 16, 2, chunk(b"iCCP", b"a\0\0" + zlib.compress(adobe))), RGB
        ),
        "display p3 png": Case(encode(in_p3, icc_profile=p3), RGB),
        "display p3 jpeg": Case(encode(in_p3, "JPEG", icc_profile=p3), RGB, 4),
        "prophoto png": Case(encode(in_prophoto, icc_profile=prophoto), RGB, 3),
        "grey profile png": Case(encode(grey, icc_profile=icc.grey_profile(1.8)), grey_rgb(GREY)),
        "grey profile jpeg": Case(encode(grey, "JPEG", icc_profile=icc.grey_profile(1.8)), grey_rgb(GREY), 3),
        "cmyk jpeg by its profile": Case(encode(press, "JPEG", icc_profile=icc.cmyk_profile(lab)), seen, 5),
        "cmyk jpeg": Case(encode(press, "JPEG"), thin, 3),
        "adobe rgb by a camera's mark": Case(encode(in_adobe, "JPEG", exif=mark), RGB, 4),
        "adobe rgb by another camera's mark": Case(encode(in_adobe, "JPEG", exif=nikon), RGB, 4),
        "png with cHRM and gAMA": Case(
            with_chunks(encode(in_adobe), [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", adobe_primaries)]),
            RGB,
            6,  # within 5 percent of 2.2, the exponent counts as sRGB's curve
        ),
        "png with a linear gAMA": Case(with_chunks(encode(linear), [linear_gamma]), RGB, 3),
        "png with cICP": Case(
            with_chunks(encode(linear), [chunk(b"cICP", b"\1\x08\0\1"), chunk(b"sRGB", b"\0")]), RGB, 3
        ),
        "srgb jpeg": Case(encode(RGB, "JPEG", icc_profile=_srgb()), RGB, 3),
    }  # fmt: skip


def _srgb() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def ignored() -> dict[str, Case]:
    """What says nothing about the pixels, or what is damaged or too large."""
    adobe = icc.rgb_profile(icc.ADOBE_RGB, 2.19921875)
    grey, noise = icc.grey_profile(1.8), random.Random(0).randbytes(1_500_000)
    plain, jpeg, webp = encode(RGB), encode(RGB, "JPEG"), encode(RGB, "WEBP", lossless=True)
    bomb, text = zlib.compress(b"0" * 100_000_000), b"a b c d e f " * 200_000
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "0" * 3_000_000, zip=True)
    info.add_itxt("prompt", "ä" * 2_000_000, zip=True)
    srgb_and_gamma = [chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100_000))]
    pngs = {
        "png with texts of megabytes": encode(RGB, pnginfo=info),
        "png with a plain text of megabytes": with_chunks(plain, [chunk(b"tEXt", b"workflow\0" + text)]),
        "png with texts of megabytes at its end": with_chunks(plain, [chunk(b"zTXt", b"w\0\0" + bomb)], at_end=True),
        "png with much text in all": with_chunks(
            plain, [chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(b"1" * 1_000_000)) for n in range(70)]
        ),
        "png with a bomb for a profile": with_chunks(plain, [chunk(b"iCCP", b"a\0\0" + bomb)]),
        "png with a text by an unknown method": with_chunks(plain, [chunk(b"zTXt", b"a\0\7" + bomb[:50])]),
        "png with a profile by an unknown method": with_chunks(plain, [chunk(b"iCCP", b"a\0\7" + bomb[:50])]),
        "png with an empty profile": with_chunks(plain, [chunk(b"iCCP", b"")]),
        "png with noise for a profile": encode(RGB, icc_profile=noise),
        "png with a short profile": encode(RGB, icc_profile=b"\0\1\2\3"),
        "png with half a profile": encode(RGB, icc_profile=adobe[:300]),
        "png with a grey profile": encode(RGB, icc_profile=grey),
        "png with a wrong checksum of its text": with_chunks(plain, [chunk(b"tEXt", b"a\0b", crc=1)]),
        "png with a wrong checksum of its profile": with_chunks(
            plain, [chunk(b"iCCP", b"a\0\0" + zlib.compress(adobe), crc=1)]
        ),
        "png with cut chunks": with_chunks(
            plain, [chunk(name, b"\0") for name in (b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fcTL", b"cICP", b"eXIf")]
        ),
        "png with an impossible cHRM and gAMA": with_chunks(
            plain, [chunk(b"gAMA", b"\0" * 4), chunk(b"cHRM", b"\0" * 32)]
        ),
        "png with sRGB before gAMA": with_chunks(plain, srgb_and_gamma),
        "png with thousands of chunks": with_chunks(plain, [chunk(b"tEXt", b"%d\0a" % n) for n in range(5000)]),
    }
    icc_head = b"ICC_PROFILE\0"
    jpegs = {
        "jpeg with a cut profile segment": with_segments(jpeg, segment(0xE2, icc_head)),
        "jpeg with the second piece of a profile": with_segments(jpeg, segment(0xE2, icc_head + b"\2\2" + adobe)),
        "jpeg with a short profile": with_segments(jpeg, segment(0xE2, icc_head + b"\1\1abcd")),
        "jpeg with a grey profile": encode(RGB, "JPEG", icc_profile=grey),
        "jpeg with a cut block of an editor": with_segments(jpeg, segment(0xED, b"Photoshop 3.0\x008BIM\4")),
        "jpeg with cut heads": with_segments(
            jpeg, segment(0xE0, b"JFIF\0"), segment(0xEE, b"Adobe"), segment(0xE1, b"Exif\0\0"), segment(0xE1, b"")
        ),
        "jpeg with a damaged index of pictures": with_segments(jpeg, segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0")),
        "jpeg with thousands of comments": with_segments(jpeg, *[segment(0xFE, b"x" * 2000)] * 2000),
    }
    webps = {
        "webp with a short profile": encode(RGB, "WEBP", lossless=True, icc_profile=b"abcd"),
        "webp with damaged exif": encode(RGB, "WEBP", lossless=True, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    }
    wrong_kind = Case(encode(GREY, icc_profile=icc.rgb_profile(icc.PROPHOTO, 1.8)), grey_rgb(GREY))
    return (
        {name: Case(data, RGB) for name, data in (pngs | webps).items()}
        | {name: Case(data, RGB, 3) for name, data in jpegs.items()}
        | {"grey png with an rgb profile": wrong_kind, "webp": Case(webp, RGB)}
    )


def turned() -> dict[str, Case]:
    """Orientation 6 in all places, or in a form that does not count."""
    plain, jpeg = encode(RGB), encode(RGB, "JPEG")
    upright, six = RGB, np.rot90(RGB, -1)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    raw = orientation(6).hex().encode()
    text = b"\nexif\n%8d\n" % (len(raw) // 2) + b"\n".join(raw[n : n + 72] for n in range(0, len(raw), 72)) + b"\n"
    itxt = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)
    far = exif((0x010F, 2, 500, struct.pack("<I", 90_000)), (0x0112, 3, 1, struct.pack("<H", 6)))

    def of_jpeg(data: bytes) -> bytes:
        return with_segments(jpeg, segment(0xE1, b"Exif\0\0" + data))

    turned_right = {
        "png": with_chunks(plain, [chunk(b"eXIf", orientation(6))]),
        "png, behind the pixels": with_chunks(plain, [chunk(b"eXIf", orientation(6, ">"))], at_end=True),
        "png, with the head of a jpeg": with_chunks(plain, [chunk(b"eXIf", b"Exif\0\0" + orientation(6))]),
        "png, in a text": with_chunks(plain, [chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))]),
        "png, in a plain text": with_chunks(plain, [chunk(b"tEXt", b"Raw profile type exif\0" + text)]),
        "png, in xmp": with_chunks(plain, [chunk(b"iTXt", itxt)]),
        "webp": encode(RGB, "WEBP", lossless=True, exif=b"Exif\0\0" + orientation(6)),
        "webp, without a head": encode(RGB, "WEBP", lossless=True, exif=orientation(6)),
        "jpeg": of_jpeg(orientation(6, ">")),
        "jpeg, as a long number": of_jpeg(exif((0x0112, 4, 1, struct.pack("<I", 6)))),
        "jpeg, after a field that lies outside": of_jpeg(far),
        "jpeg, cut behind the field": of_jpeg(orientation(6)[:22]),
        "jpeg, in xmp": with_segments(jpeg, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)),
    }
    left = {
        "orientation 0": of_jpeg(orientation(0)),
        "orientation 9": of_jpeg(orientation(9)),
        "orientation as a text": of_jpeg(exif((0x0112, 2, 2, b"6\0"))),
        "two orientations": of_jpeg(exif((0x0112, 3, 2, struct.pack("<HH", 6, 6)))),
        "orientation cut off": of_jpeg(orientation(6)[:18]),
        "exif of no byte order": of_jpeg(b"XX" + orientation(6)[2:]),
        "exif with a directory far outside": of_jpeg(b"II*\0\xff\xff\xff\x7f"),
        "exif with very many fields": of_jpeg(b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 40),
        "exif text that is no text": with_chunks(plain, [chunk(b"tEXt", b"Raw profile type exif\0\nexif\n2\nzz")]),
    }
    cases = {f"turned {name}": Case(data, six, 3) for name, data in turned_right.items()}
    return cases | {name: Case(data, upright, 3) for name, data in left.items()}


def picture_table() -> dict[str, Case]:
    """All cases by their names."""
    return transparent() | deep() | coloured() | ignored() | turned()
