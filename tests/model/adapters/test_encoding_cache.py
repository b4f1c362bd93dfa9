"""Which encodings are kept."""

from __future__ import annotations

import torch
from PIL import Image

from model.adapters.encoding_cache import Encoding, EncodingCache

BYTES = 40  # of an encoding


def encode(picture: Image.Image) -> Encoding:
    shade = float(picture.convert("L").getpixel((0, 0)))  # type: ignore[arg-type]
    return torch.full((4,), shade), torch.full((6,), shade)


def picture(shade: int, size: tuple[int, int] = (2, 2)) -> Image.Image:
    return Image.new("RGB", size, (shade,) * 3)


def ask(cache: EncodingCache, *shades: int) -> None:
    for shade in shades:
        encoding = cache.get(picture(shade), encode)
        assert all(bool((tensor == shade).all()) for tensor in encoding)


def test_the_encoding_that_was_not_used_for_longest_is_dropped() -> None:
    cache = EncodingCache(2 * BYTES)
    ask(cache, 1, 2, 1)
    assert (cache.misses, cache.hits) == (2, 1)
    ask(cache, 3, 1)  # drops 2
    assert (cache.misses, cache.hits) == (3, 2)
    ask(cache, 2)
    assert (cache.misses, cache.hits) == (4, 2)


def test_equal_pixels_are_one_picture_and_others_are_not() -> None:
    cache = EncodingCache(10 * BYTES)
    cache.get(picture(1), encode)
    cache.get(picture(1).copy(), encode)
    for other in (picture(1, (1, 4)), picture(1).convert("L"), picture(2)):
        cache.get(other, encode)
    assert (cache.misses, cache.hits) == (4, 1)


def test_an_encoding_that_is_too_large_is_used_and_not_kept() -> None:
    for max_bytes in (0, BYTES - 1):
        cache = EncodingCache(max_bytes)
        ask(cache, 1, 1)
        assert (cache.misses, cache.hits) == (2, 0)
