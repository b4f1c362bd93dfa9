import numpy as np
import pytest

from model.microworld.backgrounds import BACKGROUNDS, paint_background
from model.microworld.captions import BACKGROUND_PHRASES


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_background_is_a_function_of_name_and_seed(name: str) -> None:
    first = paint_background(name, seed=3)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 1
    assert np.array_equal(first, paint_background(name, seed=3))
    assert not np.array_equal(first, paint_background(name, seed=4))


def test_every_ground_has_phrases() -> None:
    assert set(BACKGROUND_PHRASES) == set(BACKGROUNDS)


def test_an_unknown_background_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown background 'moon'"):
        paint_background("moon", seed=0)
