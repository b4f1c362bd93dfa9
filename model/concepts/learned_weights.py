"""What each customization method trains, put into a backbone.

| method | module |
|---|---|
| Textual Inversion, XTI | `TokenVectors` |
| Custom Diffusion | `TokenVectors` and `CrossAttentionWeights` |
| DreamBooth | `LoraWeights`, or `WholeWeights` |

Each module holds the trained parameters, in fp32, and describes them as fields of a `Concept`. Everything else in the
backbone stays frozen, and may have half precision.

Legend of shapes: v vectors of a token, c width of a text encoder, L cross-attention layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer as PeftLoraLayer
from torch import Tensor, nn

from model.concepts.concept import Concept, ConceptToken, LoraLayer
from model.concepts.customization_settings import ConceptSubject, CustomizationSettings
from model.concepts.ico import detach_start_token
from model.concepts.model_parts import ModelParts
from model.concepts.subject_checks import check_words
from model.concepts.token_rows import put_in_tokens, token_rows
from model.seeding import seed_of

#: CLIP's tokens from which the vectors of Custom Diffusion and ICO start in the authors' code.
_RARE_TOKENS = (43514, 47629, 42170)
#: The layers with LoRA in diffusers' `train_dreambooth_lora.py`.
_UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")


class TokenVectors(nn.Module):
    """The vectors of the subjects' placeholders, which the text encoders read in place of token embeddings.

    Args:
        parts: The placeholders are added to its tokenizers.
        tokens: With their initial vectors.
        learn: Whether they are trained.
    """

    def __init__(self, parts: ModelParts, tokens: Sequence[ConceptToken], *, learn: bool = True) -> None:
        super().__init__()
        self._tokens, self._layers = tokens, list(parts.cross_attention())
        self._vectors = nn.ParameterList(
            nn.Parameter(vectors.float(), requires_grad=learn) for token in tokens for vectors in self._stacked(token)
        )
        undo = ExitStack()  # never closed: the backbone belongs to the training
        for number, ids in enumerate(put_in_tokens(parts, tokens, undo)):
            self._replace_rows(parts.text_encoders[number], number, ids)

    def tokens(self) -> tuple[ConceptToken, ...]:
        """The tokens with their vectors as they are now, with gradients."""
        vectors, found = iter(self._vectors), []
        for token in self._tokens:
            own = tuple(next(vectors) for _ in token.all_embeddings)
            if token.layer_embeddings:
                by_layer = dict(zip(self._layers, zip(*own, strict=True), strict=True))
                found.append(replace(token, layer_embeddings=by_layer))
            else:
                found.append(replace(token, embeddings=own))
        return tuple(found)

    def _stacked(self, token: ConceptToken) -> list[Tensor]:
        """For each text encoder (v, c), or (L, v, c) of XTI."""
        if not token.layer_embeddings:
            return [vectors.clone() for vectors in token.embeddings]
        return [torch.stack(layers) for layers in zip(*token.layer_embeddings.values(), strict=True)]

    def _replace_rows(self, encoder: Any, number: int, ids: Sequence[int]) -> None:
        table: nn.Embedding = encoder.get_input_embeddings()
        row_of = torch.full((table.num_embeddings,), -1, device=table.weight.device)
        row_of[torch.tensor(ids, device=row_of.device)] = torch.arange(len(ids), device=row_of.device)

        def put_in(_: nn.Module, args: tuple[Tensor], embedded: Tensor) -> Tensor:
            rows = token_rows(self.tokens(), number, self._layers)
            index = row_of[args[0]]
            return torch.where((index >= 0)[..., None], rows[index.clamp(min=0)].to(embedded.dtype), embedded)

        table.register_forward_hook(put_in)


class CrossAttentionWeights(nn.Module):
    """W_K and W_V of the UNet's cross-attention (Kumari et al. 2023, Sec. 3.2)."""

    def __init__(self, parts: ModelParts) -> None:
        super().__init__()
        self._names = list(parts.keys_values())
        self.layers = nn.ModuleList(layer for pair in parts.keys_values().values() for layer in pair)
        self.layers.float().requires_grad_(True)
        detach_start_token(parts.unet, ExitStack())

    def learned(self) -> dict[str, Any]:
        """Fields of `Concept`."""
        weights = [layer.weight for layer in self.layers]
        return {"cross_attention": dict(zip(self._names, zip(weights[::2], weights[1::2], strict=True), strict=True))}


class LoraWeights(nn.Module):
    """Low-rank changes of the attention layers of UNet and text encoders, alpha = rank (Hu et al. 2022)."""

    def __init__(self, parts: ModelParts, rank: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "lora"))
            for model, layers in ((parts.unet, _UNET_LAYERS), *((text, _TEXT_LAYERS) for text in parts.text_encoders)):
                unread = [name for name, module in model.named_modules() if module in parts.unread()]
                config = LoraConfig(
                    r=rank,
                    lora_alpha=rank,
                    init_lora_weights="gaussian",
                    target_modules=list(layers),
                    exclude_modules=rf"({'|'.join(map(re.escape, unread))})\..*" if unread else None,
                )
                inject_adapter_in_model(config, model)
        found = {name: module for name, module in parts.modules() if isinstance(module, PeftLoraLayer)}
        self._names = list(found)
        self._pairs = [(layer.lora_A["default"], layer.lora_B["default"]) for layer in found.values()]
        self.down, self.up = (nn.ModuleList(side) for side in zip(*self._pairs, strict=True))
        self.float().requires_grad_(True)

    def learned(self) -> dict[str, Any]:
        """Fields of `Concept`."""
        layers = [LoraLayer(down.weight, up.weight) for down, up in self._pairs]
        return {"lora": dict(zip(self._names, layers, strict=True))}


class WholeWeights(nn.Module):
    """The whole UNet and text encoders (Ruiz et al. 2023)."""

    def __init__(self, parts: ModelParts) -> None:
        super().__init__()
        self._parts = parts
        self.models = nn.ModuleList([parts.unet, *parts.text_encoders])
        self.float().requires_grad_(True)
        for module in parts.unread():
            module.requires_grad_(False)

    def learned(self) -> dict[str, Any]:
        """Fields of `Concept`."""
        weights = {name: getattr(module, own) for name, (module, own) in self._parts.parameters().items()}
        for encoder in self._parts.text_encoders:  # without the rows of placeholders
            table = encoder.get_input_embeddings().weight
            (name,) = (name for name, weight in weights.items() if weight is table)
            weights[name] = table[: encoder.config.vocab_size]
        return {"weights": weights}


class LearnedConcept(nn.Module):
    """All that learns of a method.

    Args:
        parts: Of the backbone; they get hooks, and weights of another dtype, that stay.
        subjects: One, or several that are learned together.
        settings: Of the customization.
        seed: Of the initial LoRA.

    Raises:
        ConceptError: A placeholder is a token already, or a class word is unknown.
    """

    def __init__(
        self, parts: ModelParts, subjects: Sequence[ConceptSubject], settings: CustomizationSettings, seed: int
    ) -> None:
        super().__init__()
        self._method, self._tokens = settings.method, tuple(initial_tokens(parts, subjects, settings))
        with_vectors = [token for token in self._tokens if token.all_embeddings]
        learn = settings.method != "dreambooth"
        self.vectors = TokenVectors(parts, with_vectors, learn=learn) if with_vectors else None
        self.weights: CrossAttentionWeights | LoraWeights | WholeWeights | None = None
        if settings.method == "custom_diffusion":
            self.weights = CrossAttentionWeights(parts)
        elif settings.method == "dreambooth":
            self.weights = WholeWeights(parts) if settings.full else LoraWeights(parts, settings.lora_rank, seed)

    def concept(self, backbone: str) -> Concept:
        """What has been learned; `backbone` is a name for people."""
        found = {token.placeholder: token for token in self.vectors.tokens()} if self.vectors else {}
        tokens = tuple(found.get(token.placeholder, token) for token in self._tokens)
        learned = self.weights.learned() if self.weights else {}
        return Concept(method=self._method, backbone=backbone, tokens=tokens, **learned).detached()


def initial_tokens(
    parts: ModelParts, subjects: Sequence[ConceptSubject], settings: CustomizationSettings
) -> list[ConceptToken]:
    """The subjects' tokens with the vectors from which they start; without vectors if the placeholder is a word.

    Textual Inversion and XTI start from the class word, Custom Diffusion and ICO from CLIP's rare tokens. DreamBooth
    uses the placeholder as a word; one that a tokenizer does not know gets the row of unknown words for its own.

    Raises:
        ConceptError: A placeholder is a token already, or a class word is unknown.
    """
    layers = list(parts.cross_attention()) if settings.method == "xti" else []
    tokens = []
    for number, subject in enumerate(subjects):
        token = ConceptToken(placeholder=subject.placeholder, word=subject.word, subject=subject.name)
        embeddings = tuple(
            _initial_vectors(
                tokenizer, encoder.get_input_embeddings().weight.detach().float(), subject, number, settings
            )
            for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True)
        )
        if layers:
            token = replace(token, layer_embeddings=dict.fromkeys(layers, embeddings))
        elif all(len(vectors) for vectors in embeddings):
            token = replace(token, embeddings=embeddings)
        tokens.append(token)
    return tokens


def _initial_vectors(
    tokenizer: Any, table: Tensor, subject: ConceptSubject, number: int, settings: CustomizationSettings
) -> Tensor:
    """(v, c); (0, c) if the placeholder is a word."""
    check_words(tokenizer, subject.placeholder, subject.word, settings.method)
    word = _ids(tokenizer, subject.word)
    if settings.method == "dreambooth":
        unknown = [index for index in _ids(tokenizer, subject.placeholder) if index == tokenizer.unk_token_id]
        return table[unknown[:1]]
    rare = settings.method == "custom_diffusion" or settings.prompts == "ico"
    if rare and len(table) > max(_RARE_TOKENS):
        start = -settings.vectors * (number + 1) % len(_RARE_TOKENS)
        return table[list(islice(cycle(_RARE_TOKENS), start, start + settings.vectors))]
    return table[word].mean(0).repeat(settings.vectors, 1)


def _ids(tokenizer: Any, words: str) -> list[int]:
    return list(tokenizer(words, add_special_tokens=False).input_ids)
