from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from model.backbone import Backbone, load_backbone
from model.errors import BackboneError
from tests.support.tiny_models import MAX_TOKENS, RESOLUTION


def test_sd_prompt_embedding_is_that_of_diffusers(sd: Backbone, sd_folder: Path) -> None:
    reference = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    expected, unconditional = reference.encode_prompt(["a cat", "in a hat"], "cpu", 1, True, negative_prompt=None)
    torch.testing.assert_close(sd.encode_prompt(["a cat", "in a hat"]).hidden, expected)
    torch.testing.assert_close(sd.encode_negative_prompt(None, 2).hidden, unconditional)
    assert (sd.family, sd.resolution, sd.latent_scale) == ("sd", RESOLUTION, 2)


def test_sdxl_prompt_embedding_is_that_of_diffusers(sdxl: Backbone, sdxl_folder: Path) -> None:
    reference = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    for negative in (None, "a hat"):
        hidden, no_hidden, pooled, no_pooled = reference.encode_prompt(["a cat"], negative_prompt=negative)
        text, empty = sdxl.encode_prompt(["a cat"]), sdxl.encode_negative_prompt(negative, 1)
        torch.testing.assert_close(text.hidden, hidden)
        torch.testing.assert_close(text.added_conditions["text_embeds"], pooled)
        torch.testing.assert_close(empty.hidden, no_hidden)
        torch.testing.assert_close(empty.added_conditions["text_embeds"], no_pooled)
    assert sdxl.encode_prompt(["a cat"], (32, 16)).added_conditions["time_ids"].tolist() == [[32, 16, 0, 0, 32, 16]]
    assert sdxl.family == "sdxl"


def test_latents(sd: Backbone) -> None:
    pictures = torch.rand(2, 3, RESOLUTION, RESOLUTION) * 2 - 1
    mode = sd.encode_pictures(pictures)
    assert mode.shape == (2, 4, 16, 16)
    drawn = [sd.encode_pictures(pictures, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    expected = sd.vae.decode(mode / sd.vae.config.scaling_factor).sample
    torch.testing.assert_close(sd.decode_latents(mode), expected)


def test_everything_is_frozen(sd: Backbone) -> None:
    for module in (sd.vae, sd.unet, *sd.text_encoders):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_half_precision_keeps_a_vae_that_overflows_in_fp32(sdxl_folder: Path, tmp_path: Path) -> None:
    loaded = load_backbone(sdxl_folder, torch.float16)
    assert (loaded.unet.dtype, loaded.vae.dtype) == (torch.float16, torch.float32)
    assert loaded.decode_latents(torch.zeros(1, 4, 4, 4, dtype=torch.float16)).isfinite().all()


@pytest.mark.parametrize(
    ("part", "key", "match"),
    [
        ("text_encoder", "hidden_size", r"width 8, .* needs width 16\.$"),
        (
            "vae",
            "latent_channels",
            r"8 channels, .* needs 4; models for inpainting",
        ),
    ],
)
def test_parts_of_different_models(part: str, key: str, match: str, sd_folder: Path, tmp_path: Path) -> None:
    """A text encoder or a VAE of another width, whole in itself."""
    copy = tmp_path / "copy"
    shutil.copytree(sd_folder, copy)
    found = load_backbone(sd_folder)
    old = found.text_encoders[0] if part == "text_encoder" else found.vae
    config = old.config.to_dict() if part == "text_encoder" else dict(old.config)
    config[key] = 8
    other = type(old)(type(old.config)(**config)) if part == "text_encoder" else type(old).from_config(config)
    shutil.rmtree(copy / part)
    other.save_pretrained(copy / part)
    with pytest.raises(BackboneError, match=match):
        load_backbone(copy)


def test_missing_and_damaged_parts(sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="unet cannot be loaded"):
        load_backbone(tmp_path / "nothing")
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        copy = tmp_path / f"without_{part}"
        shutil.copytree(sd_folder, copy)
        shutil.rmtree(copy / part)
        with pytest.raises(BackboneError, match=part):
            load_backbone(copy)
    damaged = tmp_path / "damaged"
    shutil.copytree(sd_folder, damaged)
    weights = next((damaged / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="unet"):
        load_backbone(damaged)


def test_threads_share_a_tokenizer(sd: Backbone) -> None:
    def encode(number: int) -> int:
        if number % 3 == 0:
            return sd.token_count("a cat " * 50) - 100
        if number % 3 == 1:
            return len(sd.token_positions("a cat in a hat", "cat"))
        return sd.token_ids(["a cat"])[0].shape[1]

    with ThreadPoolExecutor(8) as pool:
        lengths = set(pool.map(encode, range(600)))
    assert lengths == {2, 1, MAX_TOKENS}


def test_tokens_are_counted_beyond_the_encoders_end(sd: Backbone) -> None:
    assert sd.token_count("a cat in") == 5
    assert sd.token_count("cat " * 40) == 42
