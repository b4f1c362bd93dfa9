import numpy as np
import pytest

from model.microworld.instances import SPLITS, InstanceId, make_instance
from model.microworld.scenes import categories_of
from model.microworld.shapes import HELD_OUT_CATEGORIES


def test_an_id_always_gives_the_same_object() -> None:
    instance_id = InstanceId(split="train", category="robot", index=7)
    first, second = make_instance(instance_id), make_instance(instance_id)
    assert np.array_equal(first.shape, second.shape)
    assert np.array_equal(first.palette, second.palette)
    assert (first.colour, first.pattern, first.frequency) == (second.colour, second.pattern, second.frequency)


def test_splits_and_indices_give_different_objects() -> None:
    ids = [InstanceId(split=split, category="mug", index=index) for split in SPLITS for index in range(50)]
    shapes = {make_instance(instance_id).shape.tobytes() for instance_id in ids}
    assert len(shapes) == len(ids)


@pytest.mark.parametrize("split", ["train", "adapter"])
@pytest.mark.parametrize("category", HELD_OUT_CATEGORIES)
def test_held_out_categories_do_not_exist_where_models_train(split: str, category: str) -> None:
    with pytest.raises(ValueError, match="held out"):
        InstanceId(split=split, category=category, index=0)
    assert category not in categories_of(split)
    assert category in categories_of("test")


@pytest.mark.parametrize(
    ("split", "category", "index", "message"),
    [("dev", "mug", 0, "unknown split"), ("train", "lamp", 0, "unknown category"), ("train", "mug", -1, "negative")],
)
def test_an_impossible_id_is_refused(split: str, category: str, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InstanceId(split=split, category=category, index=index)
