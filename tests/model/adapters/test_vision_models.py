"""The layouts in which image encoders are published and downloaded: each is loaded, or the error says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.adapters.image_encoder import ImageEncoders, VisionTower
from model.adapters.vision_models import ImageEncoderError, load_vision_model, normalization
from tests.support.hub_cache import add_to_hub_cache, use_hub_cache

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
}
WIDE = {**SHAPE, "intermediate_size": 32}
TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

MODELS: dict[str, tuple[Callable[[], Any], tuple[Any, Any]]] = {
    "siglip with its text tower": (lambda: SiglipModel(SiglipConfig(vision_config=WIDE, text_config=TEXT)), HALF),
    "siglip alone": (lambda: SiglipVisionModel(SiglipVisionConfig(**WIDE)), HALF),
    "clip with its text tower": (lambda: CLIPModel(CLIPConfig(vision_config=WIDE, text_config=TEXT)), OPENAI),
    "clip alone": (lambda: CLIPVisionModel(CLIPVisionConfig(**WIDE)), OPENAI),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(mlp_ratio=2, **SHAPE)), IMAGENET),
    "dinov2 with registers": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SHAPE)), IMAGENET),
}
SIGLIP, DINO = "siglip with its text tower", "dinov2 with registers"


def vision_of(model: Any) -> nn.Module:
    vision: nn.Module = getattr(model, "vision_model", model)
    return vision.eval()


def new_model(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name][0]()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    own, others = one.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[key], others[key]) for key in own)


@pytest.mark.parametrize("name", MODELS)
def test_the_vision_tower_alone_is_loaded_with_its_weights_and_normalisation(name: str, tmp_path: Path) -> None:
    model = new_model(name)
    model.save_pretrained(tmp_path)
    loaded = load_vision_model(str(tmp_path), torch.float32)
    assert same_weights(loaded, vision_of(model))
    assert not [key for key in loaded.state_dict() if "text" in key or "logit" in key]
    assert normalization(str(tmp_path)) == MODELS[name][1]


@pytest.mark.parametrize("size", [12, 24, 32])
@pytest.mark.parametrize("name", MODELS)
def test_positions_are_interpolated_as_transformers_does(name: str, size: int, tmp_path: Path) -> None:
    """DINOv2's are of 518 pixels, and it is used at 384."""
    model = new_model(name)
    model.save_pretrained(tmp_path)
    tower = ImageEncoders.from_pretrained([str(tmp_path)], None, [[0]], size, 1).towers[0]
    assert isinstance(tower, VisionTower)
    pictures = torch.rand(2, 3, size, size)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in MODELS[name][1])
    options = {} if name.startswith("dino") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = vision_of(model)(pixel_values=(pictures - mean) / std, **options).last_hidden_state
    torch.testing.assert_close(tower(pictures)[0], expected[:, -((size // 4) ** 2) :])


# Layouts that are loaded: a change of the folder that does not change the weights


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def variant(folder: Path) -> None:
    weights(folder).rename(folder / "model.fp16.safetensors")


def without_format(folder: Path) -> None:
    save_file(load_file(weights(folder)), weights(folder))


def beside_pickles(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02never read")
    (folder / "flax_model.msgpack").write_bytes(b"never read")


def beside_a_damaged_variant(folder: Path) -> None:
    (folder / "model.fp16.safetensors").write_bytes(b"never read")


def links(folder: Path) -> None:
    blob = folder / "blob"
    weights(folder).rename(blob)
    weights(folder).symlink_to(blob)


def in_shards(folder: Path) -> None:
    tensors = load_file(weights(folder))
    names = sorted(tensors)
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights(folder).unlink()


def without_an_unused_head(folder: Path) -> None:
    tensors = {name: tensor for name, tensor in load_file(weights(folder)).items() if ".head." not in name}
    save_file(tensors, weights(folder), {"format": "pt"})


LOADED = [variant, without_format, beside_pickles, beside_a_damaged_variant, links, in_shards, without_an_unused_head]


@pytest.mark.parametrize("change", LOADED, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", [SIGLIP, DINO])
def test_layouts_that_are_loaded(name: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    model = new_model(name)
    model.save_pretrained(tmp_path)
    change(tmp_path)
    expected = vision_of(model).state_dict()
    got = load_vision_model(str(tmp_path), torch.float32).state_dict()
    assert all(torch.equal(got[key], expected[key]) for key in expected if not key.startswith("head."))


# Layouts that are not


def lfs_pointer(folder: Path) -> None:
    weights(folder).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167534\n")


def cut_off(folder: Path) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:-1])


def cut_off_in_the_header(folder: Path) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:100])


def incomplete(folder: Path) -> None:
    weights(folder).rename(folder / "model.safetensors.incomplete")


def browser_download(folder: Path) -> None:
    weights(folder).rename(folder / "model.safetensors.crdownload")


def pickles_only(folder: Path) -> None:
    weights(folder).rename(folder / "pytorch_model.bin")


def open_clip(folder: Path) -> None:
    weights(folder).rename(folder / "open_clip_model.safetensors")


def broken_link(folder: Path) -> None:
    weights(folder).unlink()
    weights(folder).symlink_to(folder / "gone")


def no_weights(folder: Path) -> None:
    weights(folder).unlink()


def missing_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def missing_tensors(folder: Path) -> None:
    tensors = load_file(weights(folder))
    save_file({name: tensor for name, tensor in tensors.items() if "layer" not in name}, weights(folder))


def other_shapes(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"patch_size": 4', '"patch_size": 8'))


def timm(folder: Path) -> None:
    (folder / "config.json").write_text('{"architecture": "vit_so400m_patch14_siglip_384"}')


def web_page(folder: Path) -> None:
    (folder / "config.json").write_text("<!doctype html>")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def folder_above(folder: Path) -> None:
    (folder / "inner").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / "inner" / name)


def repository_of_the_cache(folder: Path) -> None:
    (folder / "snapshots").mkdir()
    folder_above(folder)
    (folder / "inner").rename(folder / "snapshots" / "0123")


def text_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip_text_model", **TEXT}))


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (lfs_pointer, r"model\.safetensors is a pointer of Git LFS.*git lfs pull"),
    (cut_off, r"model\.safetensors has \d+ of \d+ bytes.*download it again"),
    (cut_off_in_the_header, r"cut off in its header; download it again"),
    (incomplete, r"model\.safetensors\.incomplete\), whose download was cut off; download the whole model"),
    (browser_download, r"crdownload.*download the whole model"),
    (pickles_only, r"only pickled weights \(pytorch_model\.bin\).*safetensors"),
    (open_clip, r"another format \(open_clip_model\.safetensors\); download the safetensors files"),
    (broken_link, r"model\.safetensors is a broken link; download it again"),
    (no_weights, r"no weights \(\*\.safetensors\); download the whole model"),
    (missing_shard, r"model-00002-of-00002\.safetensors is missing; download the whole model"),
    (missing_tensors, r"its weights lack \d+ tensors, such as .*; download it again"),
    (other_shapes, r"cannot be loaded"),
    (timm, r"cannot be loaded: .*model_type"),
    (web_page, r"cannot be loaded: .*config\.json"),
    (no_config, r"there is no config\.json; download the whole encoder"),
    (folder_above, r"there is no config\.json; it holds one: give .*inner"),
    (repository_of_the_cache, r"it holds one: give .*snapshots/0123"),
    (text_model, r"is a model of type siglip_text_model; one of siglip, .* is needed"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED, ids=[change.__name__ for change, _ in REFUSED])
@pytest.mark.parametrize("name", [SIGLIP, DINO])
def test_layouts_that_are_refused(name: str, change: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    new_model(name).save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(ImageEncoderError, match=sentence) as caught:
        load_vision_model(str(tmp_path), torch.float32)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"text_model.x": torch.zeros(1)}, file)
    with pytest.raises(ImageEncoderError, match="is a text encoder's weights alone; give the folder"):
        load_vision_model(str(file), torch.float32)


# The hub


def test_hub_ids_and_revisions_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = use_hub_cache(monkeypatch, tmp_path / "cache")
    models = {}
    for revision, name in (("main", SIGLIP), ("v1", DINO)):
        folder = tmp_path / revision
        models[revision] = new_model(name)
        models[revision].save_pretrained(folder)
        add_to_hub_cache(cache, "org/encoder", folder, revision)
    for hub_id, revision in (("org/encoder", "main"), ("org/encoder@main", "main"), ("org/encoder@v1", "v1")):
        assert same_weights(load_vision_model(hub_id, torch.float32), vision_of(models[revision]))
    assert normalization("org/encoder") == HALF
    assert normalization("org/encoder@v1") == IMAGENET
    for hub_id in ("org/nowhere", "org/encoder@v2"):
        with pytest.raises(ImageEncoderError, match=f"image encoder '{hub_id}' cannot be loaded") as caught:
            load_vision_model(hub_id, torch.float32)
        assert "\n" not in str(caught.value)


def test_a_snapshot_whose_weights_are_still_on_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = use_hub_cache(monkeypatch, tmp_path / "cache")
    new_model(DINO).save_pretrained(tmp_path / "dino")
    snapshot = add_to_hub_cache(cache, "org/dino", tmp_path / "dino")
    blob = weights(snapshot).resolve()
    shutil.move(blob, f"{blob}.incomplete")
    for location in ("org/dino", str(snapshot)):
        with pytest.raises(ImageEncoderError, match="image encoder"):
            load_vision_model(location, torch.float32)
