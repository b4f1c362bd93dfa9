"""The prompts of DCI's two branches and their tokens (Customized Generation Reimagined, Sec. 3.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.backbone import Backbone
from model.dci.auxiliary_nouns import likely_nouns
from model.dci.integration import BranchTokens
from model.dci.settings import DCISettings
from model.errors import GenerationError
from model.phrases import composed, phrase_pattern


@dataclass(frozen=True)
class BranchPrompts:
    """The prompts of B pictures in both branches, with the phrases that differ."""

    concept: list[str]  # P: with "V* <noun>"
    auxiliary: list[str]  # P_a: with the auxiliary noun in its place
    phrase: str  # "V* <noun>"
    nouns: list[str]  # the auxiliary noun of each picture; "": P_a has none (the ablation "w/o entire prompt")

    @classmethod
    def of(cls, backbone: Backbone, prompts: Sequence[str], settings: DCISettings) -> BranchPrompts:
        """Build the prompts of both branches.

        Raises:
            GenerationError: a prompt does not contain the concept (the message lists its words), or the auxiliary noun
                is the concept's own, is in the prompt already, or is not in the backbone's vocabulary.
        """
        phrase = " ".join(composed(settings.concept).split())
        for prompt in prompts:
            backbone.token_positions(prompt, phrase)
        contexts = [_replaced(prompt, phrase, "") for prompt in prompts]
        if settings.ablation == "no_entire_prompt":
            alone = [_context_alone(prompt, phrase) for prompt in prompts]
            return cls([phrase] * len(alone), alone, phrase, [""] * len(alone))
        nouns = [_auxiliary_noun(backbone, context, phrase, settings.auxiliary_noun) for context in contexts]
        auxiliary = [_replaced(prompt, phrase, noun) for prompt, noun in zip(prompts, nouns, strict=True)]
        return cls(list(prompts), auxiliary, phrase, nouns)

    def tokens(self, backbone: Backbone) -> tuple[BranchTokens, BranchTokens]:
        """The tokens of the concept branch, T(P) = {V*, noun}, and of the auxiliary one, T(P_a) = all but its noun.

        Raises:
            GenerationError: a phrase is in the part of its prompt that the text encoder cuts off.
        """
        own_c, own_a = (_own_tokens(backbone, prompts) for prompts in (self.concept, self.auxiliary))
        concept = _phrase_tokens(backbone, self.concept, [self.phrase] * len(self.concept))
        nouns = _phrase_tokens(backbone, self.auxiliary, self.nouns)
        return BranchTokens(own_c, concept & own_c), BranchTokens(own_a, own_a & ~nouns)


def _auxiliary_noun(backbone: Backbone, context: str, phrase: str, given: str | None) -> str:
    """The user's noun, or the likeliest one for the context that the backbone knows."""
    if given is not None:
        noun = " ".join(composed(given).split())
        reason = _objection(backbone, context, phrase, noun)
        if reason is not None:
            raise GenerationError(f"the auxiliary noun {noun!r} {reason}; choose another common noun.")
        return noun
    found = next((noun for noun in likely_nouns(context) if _objection(backbone, context, phrase, noun) is None), None)
    if found is None:
        raise GenerationError(f"no common noun is in the backbone's vocabulary to replace {phrase!r}; name one.")
    return found


def _objection(backbone: Backbone, context: str, phrase: str, noun: str) -> str | None:
    """Why a noun cannot be the auxiliary one; None: it can."""
    if _singular(noun.split()[-1]) == _singular(phrase.split()[-1]):
        return f"is the noun of the concept {phrase!r}"
    if phrase_pattern(noun).search(context):
        return "is in the prompt already"
    tokenizer: Any = backbone.tokenizers[0]
    ids = tokenizer(noun, add_special_tokens=False).input_ids
    if not ids or tokenizer.unk_token_id in ids:
        return "is not in the backbone's vocabulary"
    return None


def _singular(word: str) -> str:
    return word.lower().removesuffix("s")


def _own_tokens(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """U_P: the prompts' tokens without start, end and padding, (B, n) bool."""
    tokenizer = backbone.tokenizers[0]
    own = torch.zeros(len(prompts), tokenizer.model_max_length, dtype=torch.bool)
    for row, prompt in zip(own, prompts, strict=True):
        # The start token comes first: CLIP's text encoders have no other special token before a text.
        count = len(tokenizer(composed(prompt), add_special_tokens=False).input_ids)
        row[1 : min(1 + count, len(row) - 1)] = True
    return own.to(backbone.device)


def _phrase_tokens(backbone: Backbone, prompts: Sequence[str], phrases: Sequence[str]) -> Tensor:
    """The tokens of a phrase of each prompt, (B, n) bool; none for an empty phrase."""
    found = torch.zeros(len(prompts), backbone.tokenizers[0].model_max_length, dtype=torch.bool)
    for row, prompt, phrase in zip(found, prompts, phrases, strict=True):
        if phrase:
            row[backbone.token_positions(prompt, phrase)] = True
    return found.to(backbone.device)


def _context_alone(prompt: str, phrase: str) -> str:
    """A prompt without the concept and what leads to it: "a photo of a V* dog in snow" -> "a photo in snow"."""
    leading = r"(?:\bof\s+)?(?:\b(?:an?|the|my|one)\s+)?"
    rest = " ".join(re.sub(leading + phrase_pattern(phrase).pattern, "", composed(prompt), flags=re.IGNORECASE).split())
    if not rest.strip(" ,.;:!?"):
        raise GenerationError(
            f"the prompt {prompt!r} has nothing but the concept; without the entire prompt, name a context."
        )
    return rest


def _replaced(prompt: str, phrase: str, noun: str) -> str:
    return phrase_pattern(phrase).sub(lambda _: noun, composed(prompt))
