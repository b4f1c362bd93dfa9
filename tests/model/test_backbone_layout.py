"""The forms in which backbones are published and downloaded: what can be loaded, and what the rest is called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from model.backbone import load_backbone
from model.backbone_layout import check_backbone_files
from model.errors import BackboneError

PARTS = ("unet", "vae", "text_encoder")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167534\n"


@pytest.fixture
def folder(sd_folder: Path, tmp_path: Path) -> Path:
    """A copy of a whole backbone."""
    return Path(shutil.copytree(sd_folder, tmp_path / "model"))


def weights_of(folder: Path, part: str) -> Path:
    (file,) = (folder / part).glob("*.safetensors")
    return file


def rename(folder: Path, part: str, variant: str) -> None:
    file = weights_of(folder, part)
    file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


# What can be loaded


@pytest.mark.parametrize("parts", [PARTS, ("unet",), ("vae", "text_encoder")], ids=",".join)
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_variant_is_loaded_where_only_that_is_there(
    folder: Path, sd_folder: Path, parts: tuple[str, ...], variant: str
) -> None:
    for part in parts:
        rename(folder, part, variant)
    check_backbone_files(folder)
    loaded, whole = load_backbone(folder), load_backbone(sd_folder)
    for module, expected in ((loaded.unet, whole.unet), (loaded.text_encoders[0], whole.text_encoders[0])):
        for name, tensor in expected.state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor)


def test_files_without_a_variant_are_preferred(folder: Path) -> None:
    file = weights_of(folder, "unet")
    for variant in ("fp16", "non_ema"):
        file.with_name(f"diffusion_pytorch_model.{variant}.safetensors").write_bytes(b"never read")
    load_backbone(folder)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_loaded(folder: Path, variant: str | None) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    weights_of(folder, "unet").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="20KB", variant=variant)
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    loaded = load_backbone(folder)
    assert torch.equal(loaded.unet.conv_in.weight, unet.conv_in.weight)
    shards[-1].unlink()
    with pytest.raises(BackboneError, match=f"unet/{shards[-1].name} is missing; download the whole model"):
        check_backbone_files(folder)


# What is named: a change of the folder, and what the sentence says


def pickled(folder: Path) -> None:
    weights_of(folder, "vae").rename(folder / "vae" / "diffusion_pytorch_model.bin")


def without_weights(folder: Path) -> None:
    weights_of(folder, "text_encoder").unlink()


def pointer(folder: Path) -> None:
    weights_of(folder, "unet").write_bytes(POINTER)


def cut_off(folder: Path) -> None:
    file = weights_of(folder, "unet")
    file.write_bytes(file.read_bytes()[:-1])


def empty(folder: Path) -> None:
    weights_of(folder, "unet").write_bytes(b"")


def broken_link(folder: Path) -> None:
    file = weights_of(folder, "unet")
    file.unlink()
    file.symlink_to(folder / "blobs" / "gone")


def broken_config(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("<!doctype html>")


def config_that_is_a_list(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("[]")


def without_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def without_scheduler(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").unlink()


def xl_without_its_second_encoder(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "addition_embed_type": "text_time"}))


FOLDERS: list[tuple[Callable[[Path], None], str]] = [
    (pickled, r"vae has only pickled weights \(diffusion_pytorch_model\.bin\).*download the safetensors"),
    (without_weights, "text_encoder has no weights"),
    (pointer, "unet/.* is a pointer of Git LFS; .*git lfs pull"),
    (cut_off, r"unet/.* has \d+ of \d+ bytes.*download it again"),
    (empty, "unet/.* is not a safetensors file"),
    (broken_link, "unet/.* is a broken link"),
    (broken_config, r"unet/config\.json cannot be read as JSON"),
    (config_that_is_a_list, r"unet/config\.json holds no JSON object"),
    (without_tokenizer, r"there is no tokenizer/tokenizer_config\.json"),
    (without_scheduler, r"there is no scheduler/scheduler_config\.json"),
    (xl_without_its_second_encoder, r"there is no text_encoder_2/config\.json"),
]


@pytest.mark.parametrize(("change", "sentence"), FOLDERS, ids=[change.__name__ for change, _ in FOLDERS])
def test_what_is_wrong_with_a_folder_is_named(change: Callable[[Path], None], sentence: str, folder: Path) -> None:
    check_backbone_files(folder)
    change(folder)
    with pytest.raises(BackboneError, match=sentence):
        check_backbone_files(folder)


def test_the_config_may_have_a_byte_order_mark(folder: Path) -> None:
    config = folder / "vae" / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    check_backbone_files(folder)


def test_a_folder_around_or_inside_a_backbone_is_named(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--sd" / "snapshots" / "0123abc"
    shutil.move(folder, snapshot)
    with pytest.raises(BackboneError, match=f"give {snapshot}"):
        check_backbone_files(tmp_path / "models--org--sd")
    with pytest.raises(BackboneError, match=f"one part of a model; give the folder above it, {snapshot}"):
        check_backbone_files(snapshot / "vae")
    check_backbone_files("org/sd")  # not here: a hub id
    for name, sentence in (("transformer/config.json", "with a transformer"), ("adapter_config.json", "a LoRA")):
        other = tmp_path / Path(name).stem
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text("{}")
        with pytest.raises(BackboneError, match=sentence):
            check_backbone_files(other)


TENSORS = {
    "model.diffusion_model.input_blocks.0.0.weight": r"Stable Diffusion in one .*StableDiffusionPipeline\.from_single",
    "conditioner.embedders.0.transformer.x": r"Stable Diffusion XL in one .*StableDiffusionXLPipeline\.from_single",
    "lora_unet_down_blocks_0.lora_down.weight": "a LoRA",
    "unet.down_blocks.0.attn1.to_q.lora.down.weight": "a LoRA",
    "double_blocks.0.img_attn.proj.weight": "Flux",
    "model.diffusion_model.joint_blocks.0.x": "Stable Diffusion 3",
    "control_model.input_blocks.0.0.weight": "a ControlNet",
    "emb_params": "Textual Inversion",
    "down_blocks.0.resnets.0.conv1.weight": "a UNet's weights alone",
    "decoder.conv_in.weight": "a VAE's weights alone",
    "text_model.embeddings.token_embedding.weight": "a text encoder's weights alone",
    "something.else": "a single file of weights",
}


@pytest.mark.parametrize(("tensor", "sentence"), TENSORS.items())
def test_a_single_file_is_named_by_its_tensors(tensor: str, sentence: str, tmp_path: Path) -> None:
    save_file({tensor: torch.zeros(2), "other": torch.zeros(1)}, tmp_path / "civitai.safetensors")
    for place in (tmp_path / "civitai.safetensors", tmp_path):
        with pytest.raises(BackboneError, match=f"{place}.*{sentence}"):
            check_backbone_files(place)


CONTENTS = {
    b"GGUF\x03\0\0\0": "a quantized model in GGUF",
    POINTER: "a pointer of Git LFS",
    b"PK\x03\x04archive/data.pkl": "a pickled checkpoint or an archive",
    b"\x80\x02}q\0.": "a pickled checkpoint",
    b"<!DOCTYPE html><html>": "a web page",
    b"": "a single file",
    b"\xff" * 8 + b"{}": "a single file",
}


@pytest.mark.parametrize(("content", "sentence"), CONTENTS.items())
def test_another_single_file_is_named_by_its_first_bytes(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(BackboneError, match=rf"model\.ckpt: this is {sentence}.*diffusers' layout"):
        check_backbone_files(tmp_path / "model.ckpt")
