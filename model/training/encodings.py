"""The encodings of an adapter's examples: the VAE's latents and the text encoders' states.

Both can be computed before the training and read back (stage `cache_latents`). They depend on the pictures, the
captions, and the items of `encoder_identity`.

Legend of shapes: B batch, R side of the pictures, h, w latent grid, n_t text tokens, c_t width of the text states, c_p
of the pooled one.
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


class EncodingCacheError(ModelError):
    """Cached encodings cannot be used."""


def encode_squares(backbone: Backbone, squares: Tensor) -> Tensor:
    """Squares (B, 3, R, R) in [0, 1] -> scaled latents (B, 4, h, w), on the CPU: the modes of the VAE's posteriors."""
    return backbone.encode_pictures(squares * 2 - 1).float().cpu()


def encode_captions(backbone: Backbone, captions: Sequence[str]) -> dict[str, Tensor]:
    """hidden (B, n_t, c_t); for SDXL also text_embeds (B, c_p) and time_ids (B, 6)."""
    prompt = backbone.encode_prompt(captions)
    return {"hidden": prompt.hidden, **prompt.added_conditions}


def square_key(target_id: str, crop: tuple[float, float] | None) -> str:
    """The key of a target's square; `crop` is the crop's position, or None if the whole picture is square."""
    return target_id if crop is None else f"{target_id} {crop[0]} {crop[1]}"


def encoder_identity(backbone: Backbone, resolution: int) -> dict[str, str]:
    """Checksums and values that the encodings depend on, by their names in messages."""
    vae, tokenizers = backbone.vae, backbone.tokenizers
    weights = {
        name: tensor for name, tensor in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))
    }
    vocabularies = [[tokenizer.get_vocab(), tokenizer.model_max_length] for tokenizer in tokenizers]
    texts = [encoder.state_dict() for encoder in backbone.text_encoders]
    return {
        "VAE": _digest([weights], vae.config.scaling_factor),
        "text encoder": _digest(texts, [vocabularies, backbone.family, backbone.resolution]),
        "resolution": f"{resolution} x {resolution} pixels",
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
        if made_with.get(part) == value:
            continue
        if part == "resolution":
            raise EncodingCacheError(
                f"{where} has latents of pictures of {made_with.get(part)}, but the training uses {value}."
            )
        raise EncodingCacheError(f"{where} was made with another {part} than the backbone's.")


def _digest(states: Sequence[Mapping[str, Tensor]], settings: Any) -> str:
    """SHA-256 of weights and of plain values."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for state in states:
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
