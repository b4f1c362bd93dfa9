"""Bodies without their content codings. Some servers send `Content-Encoding: gzip` whatever a client accepts.

Everything is unpacked in small pieces, so that the reader can stop: a few bytes may unpack to gigabytes.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from model.pictures.decoding import SIGNATURE_BYTES, picture_format

_PIECE_BYTES = 1 << 16
_MOST_CODINGS = 5  # of one body, as in curl
_GZIP = b"\x1f\x8b"
_WITH_HEADER, _RAW = 47, -15  # zlib's names for gzip or zlib, and for deflate without a header


class UnpackError(Exception):
    """A body that is not what its Content-Encoding says."""


class TruncatedError(UnpackError):
    """A packed body that breaks off."""


def unpacked(chunks: Iterable[bytes], header: str) -> Iterator[bytes]:
    """The pieces of a body without the codings of its header `Content-Encoding`, some 64 KiB each.

    A body that starts like a picture is one, whatever the header says: the header may be wrong. Unknown codings, such
    as "utf-8" or "aws-chunked", are ignored for the same reason.

    Raises:
        UnpackError: The body cannot be unpacked, or it has too many codings.
    """
    codings = [name for text in header.split(",") if (name := text.strip().lower()) in _CODINGS]
    if len(codings) > _MOST_CODINGS:
        raise UnpackError(f"{len(codings)} content codings")
    start, pieces = _peek(chunks, SIGNATURE_BYTES)
    if picture_format(start) is None:
        for name in reversed(codings):
            pieces = _CODINGS[name](pieces)
    yield from pieces


def _inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpack gzip, zlib or bare deflate. What follows the last member of a gzip file is ignored, as browsers do."""
    start, chunks = _peek(chunks, 2)
    has_header = start[:2] == _GZIP or (len(start) > 1 and start[0] & 15 == 8 and (start[0] << 8 | start[1]) % 31 == 0)
    is_first, stream = True, zlib.decompressobj(_WITH_HEADER if has_header else _RAW)
    for chunk in chunks:
        is_full = False
        while chunk or is_full:
            try:
                piece = stream.decompress(chunk, _PIECE_BYTES)
            except zlib.error as error:
                if is_first:
                    raise UnpackError(error) from error
                break  # what follows is no further member
            yield piece
            chunk, is_full = stream.unconsumed_tail, len(piece) == _PIECE_BYTES
            if stream.eof:
                is_first, is_full, chunk = False, False, stream.unused_data
                stream = zlib.decompressobj(_WITH_HEADER)
    if is_first:
        raise TruncatedError("the packed data breaks off")


def _arrow_codec(name: str) -> Callable[[Iterable[bytes]], Iterator[bytes]]:
    def unpack(chunks: Iterable[bytes]) -> Iterator[bytes]:
        try:
            stream = pa.CompressedInputStream(pa.PythonFile(_File(chunks), mode="r"), name)
            while piece := stream.read(_PIECE_BYTES):
                yield piece
        except OSError as error:
            if type(error) is not OSError or error.errno is not None:
                raise  # the network's
            kind = TruncatedError if "truncated" in str(error).lower() else UnpackError
            raise kind(error) from error

    return unpack


class _File:
    """Pieces as a file that can only be read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest, self.closed = iter(chunks), b"", False

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        data = self._rest or next(self._chunks, b"")
        self._rest = data[size:]
        return data[:size]

    def close(self) -> None:
        """See `io.IOBase.close`."""
        self.closed = True


def _peek(chunks: Iterable[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes, or all if there are fewer, and all pieces."""
    start, rest = b"", iter(chunks)
    while len(start) < size and (piece := next(rest, None)) is not None:
        start += piece
    return start, itertools.chain([start], rest)


_CODINGS: dict[str, Callable[[Iterable[bytes]], Iterator[bytes]]] = {
    **dict.fromkeys(("gzip", "x-gzip", "deflate"), _inflate),
    "br": _arrow_codec("brotli"),
    "zstd": _arrow_codec("zstd"),
}
