"""The forms in which backbones are published and downloaded: what can be loaded, and what the rest is called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from model.backbone import load_backbone
from model.backbone_layout import check_backbone_files
from model.errors import BackboneError
from tests.support.hub_cache import add_to_hub_cache, use_hub_cache

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


def test_weights_without_a_format_are_loaded(folder: Path, sd_folder: Path) -> None:
    for part in PARTS:
        save_file(load_file(weights_of(folder, part)), weights_of(folder, part))
    assert torch.equal(load_backbone(folder).unet.conv_in.weight, load_backbone(sd_folder).unet.conv_in.weight)


# Hub ids, in the hub's cache without a network


def as_it_is(folder: Path) -> None:
    pass


def variant_alone(folder: Path) -> None:
    for part in ("unet", "vae", *(path.name for path in folder.glob("text_encoder*"))):
        rename(folder, part, "fp16")


def variant_in_shards(folder: Path) -> None:
    variant_alone(folder)
    (file,) = (folder / "unet").glob("*.safetensors")
    file.unlink()
    unet = UNet2DConditionModel.from_pretrained(folder.parent / "whole" / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="20KB", variant="fp16")


def slow_tokenizer(folder: Path) -> None:
    """SD-1.5's repository has vocab.json and merges.txt, no tokenizer.json."""
    for place in folder.glob("tokenizer*"):
        stored = json.loads((place / "tokenizer.json").read_text())
        (place / "vocab.json").write_text(json.dumps(stored["model"]["vocab"]))
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in stored["model"]["merges"]]
        (place / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        (place / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "change", [as_it_is, variant_alone, variant_in_shards, slow_tokenizer], ids=lambda one: one.__name__
)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_hub_id_is_the_folder(
    family: str,
    change: Callable[[Path], None],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Path(shutil.copytree(request.getfixturevalue(f"{family}_folder"), tmp_path / "whole"))
    changed = Path(shutil.copytree(whole, tmp_path / "changed"))
    change(changed)
    cache = use_hub_cache(monkeypatch, tmp_path / "cache")
    for revision in ("main", "v1"):
        add_to_hub_cache(cache, "org/model", changed, revision)
    expected = load_backbone(whole).encode_prompt(["a cat in a hat"])
    for hub_id in ("org/model", "org/model@v1"):
        loaded = load_backbone(hub_id)
        assert loaded.family == family
        assert torch.equal(loaded.encode_prompt(["a cat in a hat"]).hidden, expected.hidden)
        assert torch.equal(loaded.unet.conv_in.weight, load_backbone(whole).unet.conv_in.weight)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_what_a_cached_model_lacks_is_named(
    part: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder / part)
    add_to_hub_cache(use_hub_cache(monkeypatch, tmp_path / "cache"), "org/model", folder)
    with pytest.raises(BackboneError, match=f"backbone org/model.*({part}|layout)") as caught:
        load_backbone("org/model")
    assert "\n" not in str(caught.value)


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


def incomplete(folder: Path) -> None:
    weights_of(folder, "unet").rename(folder / "unet" / "diffusion_pytorch_model.safetensors.incomplete")


def of_another_format(folder: Path) -> None:
    weights_of(folder, "unet").rename(folder / "unet" / "diffusion_flax_model.msgpack")


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
    (incomplete, r"unet has only a part of its weights \(.*\.incomplete\).*cut off; download the whole model"),
    (of_another_format, r"unet has only weights of another format \(diffusion_flax_model\.msgpack\)"),
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


UNET, VAE = "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"
CLIP, CLIP_L, CLIP_G = "cond_stage_model.transformer.x", "conditioner.embedders.0.x", "conditioner.embedders.1.x"
XL_UNET = "model.diffusion_model.label_emb.0.0.weight"
#: Checkpoints in one file: their tensors, channels of the UNet, and what the sentence says.
SINGLE_FILES: dict[str, tuple[list[str], int, str]] = {
    "SD": (
        [CLIP, VAE],
        4,
        r"Diffusion in one .*StableDiffusionPipeline\.from_single_file\(\"[^,]*\"\)\.save_pre.*config=",
    ),
    "SD without VAE": ([CLIP], 4, r"from_single_file\(.*, vae=diffusers\.AutoencoderKL.*sd-vae-ft-mse"),
    "SDXL": ([CLIP_L, CLIP_G, VAE], 4, r"XL in one .*StableDiffusionXLPipeline\.from_single_file\(\"[^,]*\"\)\.save"),
    "SDXL without VAE": ([CLIP_L, CLIP_G], 4, r"StableDiffusionXLPipeline.*, vae=diffusers\.AutoencoderKL.*sdxl-vae"),
    "SDXL's refiner": ([CLIP_L, VAE], 4, "SDXL's refiner; give the base model"),
    "inpainting": ([CLIP, VAE], 9, "takes 9 channels, as those for inpainting.*give its base model"),
    "InstructPix2Pix": ([CLIP, VAE], 8, "takes 8 channels"),
    "a UNet": ([], 4, "Stable Diffusion in one file; it has no text encoder"),
    "a UNet of SDXL": ([XL_UNET], 4, "XL in one file; it has no text encoder"),
}


@pytest.mark.parametrize(("tensors", "channels", "sentence"), SINGLE_FILES.values(), ids=SINGLE_FILES)
def test_how_a_checkpoint_in_one_file_is_converted(
    tensors: list[str], channels: int, sentence: str, tmp_path: Path
) -> None:
    weights = {UNET: torch.zeros(8, channels, 3, 3), **{name: torch.zeros(1).half() for name in tensors}}
    save_file(weights, tmp_path / "civitai.safetensors")
    for place in (tmp_path / "civitai.safetensors", tmp_path):
        with pytest.raises(BackboneError, match=f"{place}.*{sentence}"):
            check_backbone_files(place)


TENSORS = {
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


def test_a_hub_id_that_the_cache_lacks_says_so_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub_cache(monkeypatch, tmp_path / "cache")
    with pytest.raises(BackboneError, match=r"^backbone nobody/nothing.*not in the hub's cache and the hub cannot be"):
        load_backbone("nobody/nothing")
