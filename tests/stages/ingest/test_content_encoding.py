"""Packed bodies: every coding, wrong headers, damage, and bombs. `hostile_web` sends some of them over HTTP."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator

import pyarrow as pa
import pytest

from stages.ingest.content_encoding import TruncatedError, UnpackError, unpacked

NOISE = os.urandom(200_000)


def deflate(data: bytes, window: int = -15) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, window)
    return stream.compress(data) + stream.flush()


def arrow(data: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


PACKED: dict[str, tuple[str, bytes]] = {
    "gzip": ("gzip", gzip.compress(NOISE)),
    "x-gzip": ("x-gzip", gzip.compress(NOISE)),
    "capitals": (" GZip ", gzip.compress(NOISE)),
    "stored gzip": ("gzip", gzip.compress(NOISE, 0)),
    "two members": ("gzip", gzip.compress(NOISE[:70_000]) + gzip.compress(NOISE[70_000:])),
    "zeros after the member": ("gzip", gzip.compress(NOISE) + bytes(512)),
    "text after the member": ("gzip", gzip.compress(NOISE) + b"<!-- cached -->"),
    "deflate with a header": ("deflate", zlib.compress(NOISE)),
    "bare deflate": ("deflate", deflate(NOISE)),
    "gzip called deflate": ("deflate", gzip.compress(NOISE)),
    "zlib called gzip": ("gzip", zlib.compress(NOISE)),
    "br": ("br", arrow(NOISE, "brotli")),
    "zstd": ("zstd", arrow(NOISE, "zstd")),
    "two codings": ("gzip, br", arrow(gzip.compress(NOISE), "brotli")),
    "twice gzip": ("gzip,gzip", gzip.compress(gzip.compress(NOISE))),
    "with identity": ("identity, gzip", gzip.compress(NOISE)),
    "identity": ("identity", NOISE),
    "none": ("", NOISE),
    "a charset": ("utf-8", NOISE),
    "S3's chunks": ("aws-chunked", NOISE),
    "S3's chunks and gzip": ("aws-chunked,gzip", gzip.compress(NOISE)),
}


@pytest.mark.parametrize("size", [1_000, 10_000_000])
@pytest.mark.parametrize("name", PACKED)
def test_every_coding_is_unpacked(name: str, size: int) -> None:
    header, body = PACKED[name]
    assert b"".join(unpacked(pieces(body, size), header)) == NOISE


@pytest.mark.parametrize("length", [0, 1, 258, 65_535, 65_536, 65_537, 131_072])
@pytest.mark.parametrize("window", [-15, 15, 31])
def test_no_byte_is_lost_at_the_ends_of_pieces(length: int, window: int) -> None:
    for data in (bytes(length), NOISE[:length]):
        assert b"".join(unpacked(pieces(deflate(data, window), 7), "deflate")) == data


@pytest.mark.parametrize("header", ["gzip", "deflate", "br", "zstd", "unknown", "gzip,br,gzip,br,gzip,br,gzip"])
def test_a_picture_is_taken_as_it_is_whatever_the_header_says(header: str) -> None:
    picture = b"\xff\xd8\xff" + NOISE
    if header.count(",") < 5:
        assert b"".join(unpacked(pieces(picture, 1000), header)) == picture
    else:
        with pytest.raises(UnpackError, match="7 content codings"):
            list(unpacked([picture], header))


@pytest.mark.parametrize("header", ["gzip", "deflate", "br", "zstd"])
def test_what_is_not_packed_is_an_error(header: str) -> None:
    with pytest.raises(UnpackError):
        list(unpacked([b"<html>Not found.</html>"], header))


@pytest.mark.parametrize("name", ["gzip", "deflate with a header", "bare deflate", "br", "zstd", "two codings"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_what_breaks_off_is_an_error(name: str, share: float) -> None:
    header, body = PACKED[name]
    with pytest.raises(TruncatedError):
        list(unpacked(pieces(body[: int(share * len(body))], 1000), header))


@pytest.mark.parametrize("header", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_bomb_is_unpacked_in_small_pieces(header: str) -> None:
    zeros = bytes(50_000_000)
    once = gzip.compress(zeros)
    bombs = {"gzip": once, "deflate": zlib.compress(zeros), "gzip, gzip": gzip.compress(once)}
    bomb = bombs.get(header) or arrow(zeros, {"br": "brotli", "zstd": "zstd"}[header])
    assert len(bomb) < 100_000
    first = unpacked([bomb], header)
    assert all(len(next(first)) <= 65_536 for _ in range(20))


def test_errors_of_the_network_stay_what_they_are() -> None:
    def broken() -> Iterator[bytes]:
        yield PACKED["br"][1][:1000]
        raise TimeoutError

    with pytest.raises(TimeoutError):
        list(unpacked(broken(), "br"))
