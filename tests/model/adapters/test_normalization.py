"""Mean and std of image encoders, from their files or their type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.adapters.vision_models import ImageEncoderError, normalization

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

PROCESSORS: dict[str, tuple[str, dict[str, Any], tuple[Any, Any]]] = {
    "its own": ("preprocessor_config.json", {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}, ([0.1] * 3, [0.2] * 3)),
    "one number": ("preprocessor_config.json", {"image_mean": 0.1, "image_std": 0.2}, ([0.1] * 3, [0.2] * 3)),
    "the mean alone": ("preprocessor_config.json", {"image_mean": [0.1] * 3}, ([0.1] * 3, IMAGENET[1])),
    "none": ("preprocessor_config.json", {"do_normalize": False, "image_mean": [0.1] * 3}, ((0.0,) * 3, (1.0,) * 3)),
    "of transformers 5": (
        "processor_config.json",
        {"image_processor": {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}, "processor_class": "SiglipProcessor"},
        ([0.1] * 3, [0.2] * 3),
    ),
    "without values": ("preprocessor_config.json", {"size": {"height": 24}}, IMAGENET),
}


@pytest.mark.parametrize(("file", "settings", "expected"), PROCESSORS.values(), ids=PROCESSORS)
def test_normalisation(file: str, settings: dict[str, Any], expected: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov2_with_registers"}')
    (tmp_path / file).write_text(json.dumps(settings))
    assert normalization(str(tmp_path)) == expected


@pytest.mark.parametrize("values", [[0.5, 0.5], "half", [0.5, 0.5, 0.0], [None] * 3], ids=str)
def test_a_normalisation_that_cannot_be(values: Any, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": values}))
    with pytest.raises(ImageEncoderError, match=r"image_std is .* must be three"):
        normalization(str(tmp_path))


def test_a_type_whose_normalisation_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ImageEncoderError, match=r"no preprocessor_config\.json.*download it, or write"):
        normalization(str(tmp_path))


def test_an_encoder_of_a_backbone_takes_pictures_in_minus_one_to_one(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "dino").mkdir()
    (tmp_path / "dino" / "config.json").write_text('{"model_type": "dinov2"}')
    assert normalization(str(tmp_path / "dino")) == HALF
