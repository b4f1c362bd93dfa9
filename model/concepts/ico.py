"""ICO: Image-specific Context Optimization (Customized Generation Reimagined, Sec. 3.2, Eq. 2).

While a model learns a concept, the prompt of reference picture i has a learnable context of its own in place of a fixed
template:

    [I]^i_1 .. [I]^i_M  [T]_1 .. [T]_S  [E]  [I]^i_(M+1) .. [I]^i_(M+L)

[T] is the concept V*, shared by all pictures; [E] is the class noun, fixed. Afterwards the contexts [I] are dropped,
and prompts name the concept as "... [T] <noun> ...".

The paper leaves the details open. Here they are those of the authors' code: a context vector stands for a token's
embedding and its position's together, and starts from the words of a template, tokenized alone; [T] keeps the position
embeddings of the places 1..S, wherever it stands; [I] learns ten times as fast as [T] and the UNet's cross-attention.

Legend of shapes: B batch, R reference pictures, n tokens of a padded prompt, c width of a text encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from model.backbone import Backbone, PromptEmbedding
from model.concepts.contextualizer import FrozenText
from model.errors import ModelError
from model.training.diffusion_loss import diffusion_target

#: How much faster the image-specific contexts learn.
CONTEXT_RATE = 10


@dataclass(frozen=True)
class PromptScheme:
    """The words from which the contexts of Eq. 2 start, and the length of the concept.

    Attributes:
        before: M words before the concept.
        after: L words after the class noun; may be "".
        concept_tokens: S.
    """

    before: str
    after: str
    concept_tokens: int


#: Sec. 4.2: M = 4, L = 2, S = 2 for ICO alone; M = 1, L = 1, S = 3 for models that DCI generates with.
ICO_ALONE = PromptScheme("A photo of a", ". .", 2)
ICO_FOR_DCI = PromptScheme("A", ".", 3)


class ImageSpecificContexts(nn.Module):
    """The learnable parts of Eq. 2 for one text encoder; SDXL needs one for each of its two.

    Args:
        text: The frozen encoder with its tokenizer.
        scheme: M, L and S.
        noun: The class noun [E]; may have several tokens.
        concept: Initial [T] (S, c): rows of the token table, such as those of rare tokens.
        pictures: R.

    Raises:
        ModelError: A part has no tokens, the prompt is too long, or `concept` has another length than S.
    """

    contexts: nn.Parameter  # [I] (R, M + L, c)
    concept: nn.Parameter  # [T] (S, c), without position embeddings
    ids: Tensor  # (n,): a prompt of the same layout, for the encoder's causal mask and its pooled state
    _fixed: Tensor  # (n, c): embeddings with positions; those of [I] and [T] are replaced
    _concept_positions: Tensor  # (S, c), of the places 1..S

    def __init__(self, text: FrozenText, scheme: PromptScheme, noun: str, concept: Tensor, pictures: int) -> None:
        super().__init__()
        before, nouns, after = (_token_ids(text, words) for words in (scheme.before, noun, scheme.after))
        if not before or not nouns:
            raise ModelError(f"the context {scheme.before!r} or the class noun {noun!r} has no tokens.")
        if len(concept) != scheme.concept_tokens:
            raise ModelError(f"{len(concept)} initial embeddings for the {scheme.concept_tokens} tokens of a concept.")
        self.before, self.tokens = len(before), len(concept)
        self.after_start = 1 + len(before) + len(concept) + len(nouns)
        embeddings = embeddings_module(text.encoder)
        self.register_buffer(
            "ids", _prompt_ids(text, [*before, *nouns[:1] * len(concept), *nouns, *after]), False
        )  # at [T] any token
        with torch.no_grad():
            positions = embeddings.position_embedding.weight.detach()
            fixed = embeddings(self.ids[None].to(positions.device))[0].detach()
            alone = [embeddings.token_embedding.weight[part] + positions[1 : 1 + len(part)] for part in (before, after)]
        self.register_buffer("_fixed", fixed.float(), False)
        self.register_buffer("_concept_positions", positions[1 : 1 + len(concept)].float().clone(), False)
        self.contexts = nn.Parameter(torch.cat(alone).float().repeat(pictures, 1, 1))
        self.concept = nn.Parameter(concept.detach().float().clone())

    def forward(self, pictures: Tensor) -> Tensor:
        """The inputs (B, n, c) of the text encoder's first layer for pictures (B,); positions are included."""
        own = self.contexts[pictures]
        fixed = self._fixed.expand(len(own), -1, -1)
        concept = (self.concept + self._concept_positions).expand(len(own), -1, -1)
        noun, end = 1 + self.before + self.tokens, self.after_start + own.shape[1] - self.before
        parts = [fixed[:, :1], own[:, : self.before], concept, fixed[:, noun : self.after_start]]
        return torch.cat([*parts, own[:, self.before :], fixed[:, end:]], 1)

    @contextmanager
    def in_place(self, text_encoder: Any, pictures: Tensor) -> Iterator[Tensor]:
        """Within the block, the encoder reads the prompts of pictures (B,); yields the ids (B, n) to call it with."""
        embedded = self(pictures)
        hook = embeddings_module(text_encoder).register_forward_hook(
            lambda module, args, output: embedded.to(output.dtype)
        )
        try:
            yield self.ids.expand(len(pictures), -1)
        finally:
            hook.remove()


def encode_contexts(backbone: Backbone, contexts: Sequence[ImageSpecificContexts], pictures: Tensor) -> PromptEmbedding:
    """Text states of the prompts of pictures (B,), with gradients; `contexts` has one for each text encoder."""
    outputs = []
    for encoder, own in zip(backbone.text_encoders, contexts, strict=True):
        with own.in_place(encoder, pictures) as ids:
            outputs.append(encoder(input_ids=ids, output_hidden_states=True))
    if backbone.family == "sd":
        return PromptEmbedding(outputs[0].last_hidden_state)
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    time_ids = backbone.encode_prompt([""]).added_conditions["time_ids"].expand(len(pictures), -1)
    return PromptEmbedding(hidden, {"text_embeds": outputs[-1].text_embeds, "time_ids": time_ids})


def ico_loss(
    backbone: Backbone,
    contexts: Sequence[ImageSpecificContexts],
    latents: Tensor,
    pictures: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """The diffusion loss (Eq. 1) with the prompts of Eq. 2, without weights.

    Args:
        backbone: Its text encoders are frozen; of its UNet, W_K and W_V of the cross-attention may learn.
        contexts: One for each text encoder.
        latents: z (B, 4, h, w) of the pictures.
        pictures: (B,), which reference each is.
        noise: eps (B, 4, h, w).
        timesteps: (B,).
    """
    noisy = backbone.scheduler.add_noise(latents, noise, timesteps)
    with start_token_detached(backbone.unet):
        predicted = backbone.predict(noisy, timesteps, encode_contexts(backbone, contexts, pictures))
    return F.mse_loss(predicted.float(), diffusion_target(backbone.scheduler, latents, noise, timesteps))


def embeddings_module(text_encoder: nn.Module) -> CLIPTextEmbeddings:
    """The part of a CLIP text encoder that adds token and position embeddings."""
    return next(module for module in text_encoder.modules() if isinstance(module, CLIPTextEmbeddings))


def parameter_groups(
    contexts: Sequence[ImageSpecificContexts], others: Iterable[nn.Parameter], learning_rate: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: [T] with `others` (the cross-attention's W_K and W_V), and [I] at ten times the rate."""
    return [
        {"params": [*(one.concept for one in contexts), *others], "lr": learning_rate},
        {"params": [one.contexts for one in contexts], "lr": CONTEXT_RATE * learning_rate},
    ]


@contextmanager
def start_token_detached(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within the block, the start token's keys and values of every cross-attention have no gradient.

    The start token is the same in all prompts: what it takes part in is not the concept.
    """

    def detach(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)

    layers = [module for name, module in unet.named_modules() if name.endswith((".attn2.to_k", ".attn2.to_v"))]
    hooks = [layer.register_forward_hook(detach) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _token_ids(text: FrozenText, words: str) -> list[int]:
    return list(text.tokenizer(words, add_special_tokens=False).input_ids)


def _prompt_ids(text: FrozenText, inner: list[int]) -> Tensor:
    """Start, `inner`, end, padding: (n,)."""
    tokenizer = text.tokenizer
    start, *_, end = tokenizer("a").input_ids
    padding = tokenizer.model_max_length - len(inner) - 2
    if padding < 0:
        raise ModelError(f"a prompt of {len(inner)} tokens; the text encoder reads {tokenizer.model_max_length - 2}.")
    return torch.tensor([start, *inner, end, *[tokenizer.pad_token_id] * padding])
