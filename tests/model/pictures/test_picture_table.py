"""The table of picture files: each is decoded to the pixels that its format and its metadata mean."""

from __future__ import annotations

import numpy as np
import pytest

from model.pictures.decoding import load_picture, load_reduced
from tests.support.picture_table import picture_table

TABLE = picture_table()


@pytest.mark.parametrize("name", TABLE)
def test_the_pixels_are_those_that_the_file_means(name: str) -> None:
    case = TABLE[name]
    for loaded in (load_picture(case.data), load_reduced(case.data, 1000)):
        assert (loaded.mode, loaded.info) == ("RGB", {})
        pixels = np.asarray(loaded, dtype=float)
        assert pixels.shape == case.expected.shape
        assert np.abs(pixels - case.expected).max() <= case.tolerance
