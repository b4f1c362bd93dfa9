"""The encodings of an adapter's examples: the VAE's latents and the text encoders' states.

Both can be computed before the training and read back (stage `cache_latents`). They depend on the pictures, the
captions, and the items of `encoder_identity`.

Legend of shapes: B batch, H, W height and width of the pictures, h, w latent grid, n_t text tokens, c_t width of the
text states, c_p of the pooled one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from model.backbone import Backbone
from model.errors import ModelError
from model.training.target_sizes import PictureSize

#: Pixels in a pass of the VAE: 16 pictures of 512 x 512. Its activations take about a kilobyte each.
_PIXELS = 16 * 512 * 512


class EncodingCacheError(ModelError):
    """Cached encodings cannot be used."""


def encode_targets(backbone: Backbone, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] -> scaled latents (B, 4, h, w), on the CPU: the modes of the VAE's posteriors.

    Raises:
        BackboneError: the VAE cannot divide a side.
    """
    for side in pictures.shape[2:]:
        backbone.check_resolution(side)
    at_once = max(1, _PIXELS // pictures[0, 0].numel())
    return torch.cat([backbone.encode_pictures(part * 2 - 1).float().cpu() for part in pictures.split(at_once)])


def encode_captions(backbone: Backbone, captions: Sequence[str]) -> dict[str, Tensor]:
    """hidden (B, n_t, c_t); for SDXL also text_embeds (B, c_p). An empty caption is no prompt, as in inference."""
    prompt = backbone.encode_prompt([caption or None for caption in captions])
    pooled = {name: tensor for name, tensor in prompt.added_conditions.items() if name != "time_ids"}
    return {"hidden": prompt.hidden, **pooled}


def target_key(target_id: str, size: PictureSize, crop: tuple[float, float] | None) -> str:
    """The key of a target; `crop` is the crop's position, or None if the target shows the whole picture."""
    key = f"{target_id} {size.width}x{size.height}"
    return key if crop is None else f"{key} {crop[0]} {crop[1]}"


def encoder_identity(backbone: Backbone) -> dict[str, str]:
    """Checksums and values that the encodings depend on, by their names in messages."""
    vae, tokenizers = backbone.vae, backbone.tokenizers
    weights = {
        name: tensor for name, tensor in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))
    }
    vocabularies = [[tokenizer.get_vocab(), tokenizer.model_max_length] for tokenizer in tokenizers]
    texts = [encoder.state_dict() for encoder in backbone.text_encoders]
    return {
        "VAE": _digest([weights], vae.config.scaling_factor),
        "text encoder": _digest(texts, [vocabularies, backbone.family, backbone.zero_empty_prompt]),
    }


def check_identity(made_with: Mapping[str, str], needed: Mapping[str, str], where: str) -> None:
    """Refuse encodings of another backbone.

    Args:
        made_with: `encoder_identity` of the backbone that computed them.
        needed: `encoder_identity` of the backbone in training.
        where: The encodings' folder.

    Raises:
        EncodingCacheError: they differ; names the difference.
    """
    for part, value in needed.items():
        if made_with.get(part) != value:
            raise EncodingCacheError(f"{where} was made with another {part} than the backbone's.")


def _digest(states: Sequence[Mapping[str, Tensor]], settings: Any) -> str:
    """SHA-256 of weights and of plain values."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for state in states:
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
