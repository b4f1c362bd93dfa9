"""Encodings of the pictures that were used last, so that a picture that comes again is not encoded again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable

from PIL import Image
from torch import Tensor

Encoding = tuple[Tensor, ...]


class EncodingCache:
    """Encodings by their pictures' pixels; those that were not used for longest are dropped.

    It is for one thread.

    Args:
        max_bytes: Of all encodings together; 0 keeps none.

    Attributes:
        hits: How often an encoding was there.
        misses: How often it was not.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[Hashable, Encoding] = OrderedDict()
        self._bytes = 0

    def get(self, picture: Image.Image, encode: Callable[[Image.Image], Encoding]) -> Encoding:
        """The encoding of a picture: kept, or made now."""
        if not self.max_bytes:
            self.misses += 1
            return encode(picture)
        key = (picture.mode, picture.size, hashlib.blake2b(picture.tobytes()).digest())
        if key in self._kept:
            self.hits += 1
            self._kept.move_to_end(key)
            return self._kept[key]
        self.misses += 1
        encoding = encode(picture)
        self._keep(key, encoding)
        return encoding

    def _keep(self, key: Hashable, encoding: Encoding) -> None:
        self._kept[key] = encoding
        self._bytes += _bytes_of(encoding)
        while self._bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _bytes_of(dropped)


def _bytes_of(encoding: Encoding) -> int:
    return sum(tensor.nbytes for tensor in encoding)
