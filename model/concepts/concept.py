"""What a learned concept consists of, whatever the method that learned it.

| method | learned |
|---|---|
| Textual Inversion | `ConceptToken.embeddings` |
| XTI (P+) | `ConceptToken.layer_embeddings` |
| Custom Diffusion | `embeddings` and `Concept.cross_attention` |
| DreamBooth with LoRA | `Concept.lora` |
| DreamBooth of the whole models | `Concept.weights` |

Legend of shapes: v vectors of a token, c width of a text encoder, r rank, C and k widths of a cross-attention layer and
of the text states that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.errors import ModelError

#: The text encoders' names in diffusers' files: the first is that of SD and SDXL, the second that of SDXL.
ENCODER_NAMES = ("clip_l", "clip_g")


class ConceptError(ModelError):
    """The concept cannot be learned, read or loaded."""


@dataclass(frozen=True, kw_only=True)
class ConceptToken:
    """One subject with its placeholder.

    Attributes:
        placeholder: V* as it is written in prompts.
        word: The class word.
        subject: A name for people.
        embeddings: (v, c) for each text encoder; empty if the placeholder is an ordinary word of the tokenizer.
        layer_embeddings: XTI: for each cross-attention layer of the UNet (`down_blocks.0. ... .attn2`), (v, c) for each
            text encoder.

    Raises:
        ValueError: The numbers of vectors, or the widths for an encoder, differ.
    """

    placeholder: str
    word: str
    subject: str
    embeddings: tuple[Tensor, ...] = ()
    layer_embeddings: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = [embeddings for embeddings in (self.embeddings, *self.layer_embeddings.values()) if embeddings]
        if len({len(tensor) for embeddings in every for tensor in embeddings}) > 1:
            raise ValueError(f"{self.placeholder!r} has different numbers of vectors for its encoders or layers")
        if len({tuple(tensor.shape[-1] for tensor in embeddings) for embeddings in every}) > 1:
            raise ValueError(f"{self.placeholder!r} has embeddings of different widths for its layers")

    @property
    def all_embeddings(self) -> tuple[Tensor, ...]:
        """`embeddings`; of a token of XTI the mean of its layers', for what is not read by a layer (SDXL's pooled)."""
        if not self.layer_embeddings:
            return self.embeddings
        by_encoder = zip(*self.layer_embeddings.values(), strict=True)
        return tuple(torch.stack(layers).float().mean(0) for layers in by_encoder)


@dataclass(frozen=True)
class LoraLayer:
    """The low-rank change of a layer: W + up @ down. alpha is the rank: no other scale belongs to it."""

    down: Tensor  # (r, in), or (r, in, h, w) of a convolution
    up: Tensor  # (out, r), or (out, r, 1, 1)

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What was learned together: one token, or several with shared weights.

    Attributes:
        method: For people: textual_inversion, xti, dreambooth or custom_diffusion.
        backbone: For people: the name of the model on which it was learned.
        tokens: The subjects.
        cross_attention: Custom Diffusion: layer (as in `layer_embeddings`) -> the weights of `to_k` and `to_v`, (C, k).
        lora: Layer, beginning with "unet.", "text_encoder.text_model." or "text_encoder_2.text_model." -> its change.
        weights: Parameter, beginning as in `lora`, such as "unet.conv_in.weight" -> its new value.
    """

    method: str
    backbone: str
    tokens: tuple[ConceptToken, ...]
    cross_attention: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    lora: Mapping[str, LoraLayer] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def placeholders(self) -> list[str]:
        """The tokens' placeholders."""
        return [token.placeholder for token in self.tokens]

    def tensors(self) -> Iterator[Tensor]:
        """All that was learned."""
        for token in self.tokens:
            yield from token.embeddings
            for layers in token.layer_embeddings.values():
                yield from layers
        for pair in self.cross_attention.values():
            yield from pair
        for layer in self.lora.values():
            yield from (layer.down, layer.up)
        yield from self.weights.values()

    def detached(self) -> Concept:
        """A copy of all tensors on the CPU."""
        tokens = tuple(
            replace(
                token,
                embeddings=_copied(token.embeddings),
                layer_embeddings={layer: _copied(own) for layer, own in token.layer_embeddings.items()},
            )
            for token in self.tokens
        )
        return replace(
            self,
            tokens=tokens,
            cross_attention={layer: (_copy(key), _copy(value)) for layer, (key, value) in self.cross_attention.items()},
            lora={name: LoraLayer(_copy(layer.down), _copy(layer.up)) for name, layer in self.lora.items()},
            weights={name: _copy(weight) for name, weight in self.weights.items()},
        )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _copied(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(_copy(tensor) for tensor in tensors)
