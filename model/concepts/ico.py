"""ICO: Image-specific Context Optimization (Customized Generation Reimagined, Sec. 3.2, Eq. 2).

While a model learns a concept, the prompt of reference picture i has a learnable context of its own in place of a fixed
template:

    [I]^i_1 .. [I]^i_M  [T]_1 .. [T]_S  [E]  [I]^i_(M+1) .. [I]^i_(M+L)

[T] is the concept V*, shared by all pictures; [E] is the class noun, fixed. Afterwards the contexts [I] are dropped,
and prompts name the concept as "... [T] <noun> ...".

The paper leaves the details open. Here they are those of the authors' code: a context vector stands for a token's
embedding and its position's together, and starts from the words of a template, tokenized alone; [T] keeps the position
embeddings of the places 1..S, wherever it stands; [I] learns ten times as fast as [T] and the UNet's cross-attention.

The contexts replace inputs of the text encoder; the rest of the prompt stays as it is. So they work beside anything
that learns: vectors of the placeholder, LoRA, the UNet.

Legend of shapes: B batch, R reference pictures, n tokens of a padded prompt, c width of a text encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from model.concepts.concept import ConceptError

#: How much faster the image-specific contexts learn.
CONTEXT_RATE = 10.0
#: The words from which contexts start, before and after the concept.
_WORDS = ("A photo of a", ". .")


@dataclass(frozen=True)
class ContextPrompt:
    """The prompt of Eq. 2 in a tokenizer's ids.

    Attributes:
        ids: (n,), with the initial words of the contexts.
        before: M.
        concept: S, or the number of tokens of a placeholder that is a word.
        after: L.
        noun: Tokens of [E].
    """

    ids: Tensor
    before: int
    concept: int
    after: int
    noun: int

    @property
    def places(self) -> list[int]:
        """The positions of the contexts [I]."""
        start = 1 + self.before + self.concept + self.noun
        return [*range(1, 1 + self.before), *range(start, start + self.after)]


def context_prompt(tokenizer: Any, placeholder: str, noun: str, before: int, after: int) -> ContextPrompt:
    """The prompt of Eq. 2 with M = `before` and L = `after` context tokens.

    Raises:
        ConceptError: The class noun has no tokens, or the prompt is too long.
    """

    def tokens(words: str) -> list[int]:
        return list(tokenizer(words, add_special_tokens=False).input_ids)

    first, last = (
        list(islice(cycle(tokens(words)), count)) for words, count in zip(_WORDS, (before, after), strict=True)
    )
    concept, nouns = tokens(placeholder), tokens(noun)
    if not nouns:
        raise ConceptError(f"the class word {noun!r} has no tokens.")
    ids = _prompt_ids(tokenizer, [*first, *concept, *nouns, *last])
    return ContextPrompt(ids, before, len(concept), after, len(nouns))


class ImageSpecificContexts(nn.Module):
    """The contexts [I] of Eq. 2 for one text encoder; SDXL needs one for each of its two.

    Args:
        text_encoder: The encoder.
        prompts: Of the R pictures, with the same M and L.
    """

    contexts: nn.Parameter  # [I] (R, M + L, c), positions included
    ids: Tensor  # (R, n)
    _places: Tensor  # (R, M + L), of the contexts
    _shift: Tensor  # (R, n, c): what the positions of [T] differ from its places'

    def __init__(self, text_encoder: nn.Module, prompts: Sequence[ContextPrompt]) -> None:
        super().__init__()
        embeddings = embeddings_module(text_encoder)
        positions = embeddings.position_embedding.weight.detach().float()
        table = embeddings.token_embedding.weight.detach().float()
        self.register_buffer("ids", torch.stack([prompt.ids for prompt in prompts]), False)
        self.register_buffer("_places", torch.tensor([prompt.places for prompt in prompts], dtype=torch.long), False)
        shift = positions.new_zeros(len(prompts), *positions.shape)
        starts = []
        for row, prompt in zip(shift, prompts, strict=True):
            first, last = 1 + prompt.before, 1 + prompt.before + prompt.concept
            row[first:last] = positions[1 : 1 + prompt.concept] - positions[first:last]
            # The initial words are tokenized alone, so each part begins with the first position.
            alone = [*range(1, 1 + prompt.before), *range(1, 1 + prompt.after)]
            starts.append(table[prompt.ids[prompt.places]] + positions[alone])
        self.register_buffer("_shift", shift, False)
        self.contexts = nn.Parameter(torch.stack(starts))

    def forward(self, embedded: Tensor, pictures: Tensor) -> Tensor:
        """Inputs of the text encoder's first layer, with the contexts of pictures (B,) in place.

        Args:
            embedded: (k B, n, c), the inputs of the pictures' prompts `ids`; XTI encodes k copies.
            pictures: (B,).
        """
        pictures = pictures.repeat(len(embedded) // len(pictures))
        embedded = embedded + self._shift[pictures].to(embedded)
        places = self._places[pictures][..., None].expand(-1, -1, embedded.shape[-1])
        return embedded.scatter(1, places, self.contexts[pictures].to(embedded))

    @contextmanager
    def in_place(self, text_encoder: nn.Module, pictures: Tensor) -> Iterator[None]:
        """Within the block, the encoder reads the prompts `ids` of pictures (B,) with their contexts."""
        hook = embeddings_module(text_encoder).register_forward_hook(
            lambda module, args, output: self(output, pictures)
        )
        try:
            yield
        finally:
            hook.remove()


def embeddings_module(text_encoder: nn.Module) -> CLIPTextEmbeddings:
    """The part of a CLIP text encoder that adds token and position embeddings."""
    return next(module for module in text_encoder.modules() if isinstance(module, CLIPTextEmbeddings))


def detach_start_token(unet: UNet2DConditionModel, undo: ExitStack) -> None:
    """The start token's keys and values of every cross-attention get no gradient, as in Custom Diffusion and ICO.

    The start token is the same in all prompts: what it takes part in is not the concept. `undo` gets callbacks that
    end it.
    """

    def detach(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)

    for name, module in unet.named_modules():
        if name.endswith((".attn2.to_k", ".attn2.to_v")):
            undo.callback(module.register_forward_hook(detach).remove)


def _prompt_ids(tokenizer: Any, inner: list[int]) -> Tensor:
    """Start, `inner`, end, padding: (n,)."""
    start, *_, end = tokenizer("a").input_ids
    padding = tokenizer.model_max_length - len(inner) - 2
    if padding < 0:
        raise ConceptError(
            f"the prompt has {len(inner)} tokens, and the text encoder reads {tokenizer.model_max_length - 2}: shorten "
            "the class word, the placeholder's vectors or the contexts."
        )
    return torch.tensor([start, *inner, end, *[tokenizer.pad_token_id] * padding])
