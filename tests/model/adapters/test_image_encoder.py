from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.adapters.image_encoder import (
    ImageEncoders,
    ReferenceFeatures,
    VisionTower,
)
from model.adapters.vision_models import ImageEncoderError, normalization
from model.errors import ModelError
from model.pictures.tensors import to_tensor
from tests.support.tiny_models import ENCODERS

_SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of a SigLIP and a DINOv2 with registers, each with its own normalisation."""
    torch.manual_seed(0)
    folders = [tmp_path_factory.mktemp(name) for name in ("siglip", "dino")]
    SiglipVisionModel(SiglipVisionConfig(intermediate_size=32, **_SHAPE)).save_pretrained(folders[0])
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_SHAPE)).save_pretrained(folders[1])
    for folder, mean in zip(folders, (0.5, 0.4), strict=True):
        settings = {"image_mean": [mean] * 3, "image_std": [0.25] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return [str(folder) for folder in folders]


def micro(folder: Path) -> ImageEncoders:
    return ImageEncoders.from_pretrained(
        ENCODERS["image_encoders"], folder, ENCODERS["shallow_layers"], ENCODERS["reference_size"], ENCODERS["tiles"]
    )


def test_a_damaged_preprocessor_config_is_named(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}', encoding="utf-8-sig")
    assert normalization(str(tmp_path)) == ([0.1, 0.2, 0.3], [1, 2, 3])
    for text in ("{", "\u00e9"):
        file.write_text(text, encoding="latin-1")
        with pytest.raises(ModelError, match=r"preprocessor_config\.json is no (JSON|text)"):
            normalization(str(tmp_path))


def test_features_of_the_backbones_own_clip(sd_folder: Path) -> None:
    clip = CLIPModel.from_pretrained(sd_folder / "clip").eval()
    pictures = torch.rand(3, 3, 16, 16)

    def states(views: Tensor) -> list[Tensor]:
        with torch.no_grad():
            output = clip.vision_model(pixel_values=views * 2 - 1, output_hidden_states=True)
        return [state[:, 1:] for state in output.hidden_states]  # without the class token

    features = micro(sd_folder).features(pictures)
    torch.testing.assert_close(features.deep, states(pictures)[3])
    torch.testing.assert_close(micro(sd_folder).tokens(pictures), states(pictures)[3])
    torch.testing.assert_close(features.shallow, torch.cat(states(pictures)[1:3], dim=1))
    large = F.interpolate(pictures, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    corners = [large[:, :, top : top + 16, left : left + 16] for top in (0, 16) for left in (0, 16)]
    torch.testing.assert_close(features.high, torch.cat([states(corner)[3] for corner in corners], dim=1))


def test_two_encoders_side_by_side(pair: list[str]) -> None:
    encoders = ImageEncoders.from_pretrained(pair, None, [[0, 1], [1, 2]], 16, 2)
    assert (encoders.width, encoders.patches, encoders.levels) == (32, 16, 2)
    pictures = torch.rand(2, 3, 32, 32)
    features = encoders.features(pictures)
    assert [tuple(tensor.shape) for tensor in (features.deep, features.shallow, features.high)] == [
        (2, 16, 32),
        (2, 32, 32),
        (2, 64, 32),
    ]
    low = F.interpolate(pictures, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    siglip = SiglipVisionModel.from_pretrained(pair[0]).eval()
    dino = Dinov2WithRegistersModel.from_pretrained(pair[1]).eval()
    with torch.no_grad():
        first = siglip(pixel_values=(low - 0.5) / 0.25, output_hidden_states=True)
        second = dino(pixel_values=(low - 0.4) / 0.25, output_hidden_states=True)
    torch.testing.assert_close(features.deep[..., :16], first.last_hidden_state)
    torch.testing.assert_close(features.deep[..., 16:], second.last_hidden_state[:, 5:])  # class and four registers
    torch.testing.assert_close(features.shallow[:, 16:, 16:], second.hidden_states[3][:, 5:])


def test_another_size_than_the_encoders_own(pair: list[str]) -> None:
    encoders = ImageEncoders.from_pretrained(pair, None, [[0], [0]], 24, 1)
    assert encoders.features(torch.rand(1, 3, 24, 24)).deep.shape == (1, 36, 32)


def test_black_is_the_dropped_condition(sd_folder: Path) -> None:
    encoders = micro(sd_folder)
    black, expected = encoders.black(3), encoders.features(torch.zeros(1, 3, 16, 16))
    for got, wanted in zip(vars(black).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(got, wanted.expand(3, -1, -1))


@pytest.mark.parametrize("keep", [[True, False, True], [False, False, False], [True, True, True], [False, True, False]])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_dropped_pictures_are_black_and_not_encoded(
    keep: list[bool], half: torch.dtype | None, sd_folder: Path
) -> None:
    encoders, pictures, kept = micro(sd_folder), torch.rand(3, 3, 16, 16), torch.tensor(keep)
    with torch.autocast("cpu", half, enabled=half is not None):
        features, tokens, black = encoders.features(pictures), encoders.tokens(pictures), encoders.black(3)
        poisoned = torch.where(kept[:, None, None, None], pictures, torch.nan)
        mixed, mixed_tokens = encoders.features_or_black(poisoned, kept), encoders.tokens_or_black(poisoned, kept)
    for row, own in enumerate(keep):
        expected = features if own else black
        for name in ("deep", "shallow", "high"):
            torch.testing.assert_close(getattr(mixed, name)[row], getattr(expected, name)[row])
        torch.testing.assert_close(mixed_tokens[row], (tokens if own else black.deep)[row])


def test_the_tiles_keep_no_states_of_other_blocks(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = micro(sd_folder)
    model: Any = encoders.towers[0].model
    asked: list[tuple[int, bool]] = []
    forward = model.forward

    def noted(**options: Any) -> Any:
        asked.append((len(options["pixel_values"]), options["output_hidden_states"]))
        return forward(**options)

    monkeypatch.setattr(model, "forward", noted)
    encoders.features(torch.rand(2, 3, 32, 32))
    assert asked == [(2, True), (8, False)]


def test_features_do_not_depend_on_the_batch(sd_folder: Path) -> None:
    encoders = micro(sd_folder)
    pictures = [Image.effect_noise(size, 80).convert("RGB") for size in ((16, 16), (40, 33), (20, 50))]
    together = encoders.encode(pictures)
    assert together.deep.shape == (3, 16, 16)
    for row, picture in enumerate(pictures):
        torch.testing.assert_close(together.high[row], encoders.encode([picture]).high[0])
    exact = encoders.features(to_tensor([pictures[0]]))
    torch.testing.assert_close(together.deep[:1], exact.deep)
    alone = ReferenceFeatures.cat([encoders.encode([picture]) for picture in pictures])
    torch.testing.assert_close(alone.shallow, together.shallow)


def test_frozen(sd_folder: Path) -> None:
    assert not any(parameter.requires_grad for parameter in micro(sd_folder).parameters())
    assert not micro(sd_folder).features(torch.rand(1, 3, 16, 16)).deep.requires_grad


def test_errors(pair: list[str], sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageEncoderError, match=r"there is no config\.json"):
        ImageEncoders.from_pretrained([str(tmp_path)], None, [[0]], 16, 2)
    with pytest.raises(ImageEncoderError, match=r"image_encoders has 2 .* shallow_layers has 1"):
        ImageEncoders.from_pretrained(pair, None, [[0]], 16, 2)
    with pytest.raises(ImageEncoderError, match="shallow_layers"):
        ImageEncoders.from_pretrained(pair, None, [[0], [0, 1]], 16, 2)
    with pytest.raises(ImageEncoderError, match=r"shallow_layers \[0, 3\].* 0 to 2"):
        ImageEncoders.from_pretrained(["clip"], sd_folder, [[0, 3]], 16, 2)
    coarse = SiglipVisionModel(SiglipVisionConfig(intermediate_size=32, **(_SHAPE | {"patch_size": 8})))
    fine = SiglipVisionModel(SiglipVisionConfig(intermediate_size=32, **_SHAPE))
    towers = [VisionTower(model, [0.5] * 3, [0.5] * 3, [0]) for model in (coarse, fine)]
    with pytest.raises(ImageEncoderError, match=r"\[2, 4\] patches a side"):
        ImageEncoders(towers, 16, 2)
