"""Learned concepts that requests can name.

They are in the model only while steps of the requests that name them are taken, so that a request sees its own concepts
and no others. Two versions of a concept, or two concepts with one placeholder, can be painted beside each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from model.concepts.concept import Concept
from model.concepts.folder import read_concept
from model.concepts.loading import check_concept, load_concept, unload_concepts
from model.concepts.model_parts import ModelParts
from model.concepts.placeholders import add_placeholders
from model.dci.settings import DCISettings
from model.errors import GenerationError
from model.painting.request import RequestFieldError
from model.pipeline import RealCustomPipeline

_KEPT = 8  # concepts and tokenizers in memory


@dataclass(frozen=True)
class _Token:
    placeholder: str
    word: str
    vectors: int  # 0: an ordinary word of the tokenizer


class Concepts:
    """The concepts that a pipeline can paint.

    Args:
        pipeline: Nobody else loads concepts into it.
    """

    def __init__(self, pipeline: RealCustomPipeline) -> None:
        self._pipeline = pipeline
        self._folders: dict[str, Path] = {}
        self._tokens: dict[str, list[_Token]] = {}
        self._loaded: tuple[str, ...] = ()
        self._read: Callable[[Path], Concept] = lru_cache(_KEPT)(read_concept)
        self._with_placeholders = lru_cache(_KEPT)(self._pipeline_for_checks)

    @property
    def names(self) -> list[str]:
        """Of all that are offered."""
        return list(self._folders)

    def offer(self, name: str, folder: Path) -> None:
        """Let requests name a concept.

        Raises:
            ConceptError: The folder has no concept, or one of another backbone.
        """
        concept = self._read(folder)
        check_concept(ModelParts.of(self._pipeline), concept, f"the concept {name}")
        self._folders[name] = folder
        self._tokens[name] = [
            _Token(token.placeholder, token.word, len(token.all_embeddings[0]) if token.all_embeddings else 0)
            for token in concept.tokens
        ]

    def check(self, names: Sequence[str], prompt: str) -> None:
        """Check that the concepts are offered, go together, and are in the prompt.

        Raises:
            RequestFieldError: They are not.
        """
        if unknown := [name for name in names if name not in self._tokens]:
            listed = ", ".join(self.names) or "none"
            raise RequestFieldError("concepts", f"there is no concept {unknown[0]!r}; there are: {listed}.")
        placeholders: set[str] = set()
        for name in names:
            if not any(self._is_in(prompt, token.placeholder, names) for token in self._tokens[name]):
                written = " or ".join(map(repr, self.phrases([name])))
                raise RequestFieldError("prompt", f"it does not name the concept {name!r}; write {written}.")
            own = {token.placeholder for token in self._tokens[name]}
            if common := placeholders & own:
                raise RequestFieldError(
                    "concepts", f"two concepts have the placeholder {min(common)!r}; name one of them at a time."
                )
            placeholders |= own

    def phrases(self, names: Sequence[str]) -> list[str]:
        """How prompts name the subjects of concepts: placeholder and class word."""
        return [f"{token.placeholder} {token.word}" for name in names for token in self._tokens[name]]

    def dci(
        self, names: Sequence[str], prompt: str, strength: float | None, noun: str | None, share: float | None
    ) -> DCISettings | None:
        """DCI for the concept of a prompt; None if no setting of DCI is given.

        Raises:
            RequestFieldError: The prompt does not name one concept with its class word.
        """
        given = {"injection_strength": strength, "auxiliary_noun": noun, "auxiliary_share": share}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            return None
        phrases = self.phrases(names)
        found = [phrase for phrase in phrases if self._is_in(prompt, phrase, names)]
        if len(found) != 1:
            listed = " or ".join(map(repr, phrases)) or "a concept, which needs a model or the field 'concepts'"
            raise RequestFieldError("dci_lambda", f"DCI needs a prompt with one concept: {listed}.")
        return DCISettings(concept=found[0], **given)  # type: ignore[arg-type]

    def for_checks(self, names: Sequence[str]) -> RealCustomPipeline:
        """The pipeline with tokenizers of its own that find the placeholders: to check requests in any thread."""
        return self._with_placeholders(tuple(names))

    def use(self, names: Sequence[str]) -> None:
        """Load these concepts into the model and no others."""
        if self._loaded == tuple(names):
            return
        unload_concepts(self._pipeline)
        self._loaded = ()
        if names:
            load_concept(self._pipeline, *(self._read(self._folders[name]) for name in names))
        self._loaded = tuple(names)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of the concepts in the model."""
        return self._loaded

    def _pipeline_for_checks(self, names: tuple[str, ...]) -> RealCustomPipeline:
        backbone = self._pipeline.backbone
        tokenizers = copy.deepcopy(backbone.tokenizers)  # one object for both encoders stays one
        vectors = {token.placeholder: token.vectors for name in names for token in self._tokens[name] if token.vectors}
        if vectors:
            for tokenizer in {id(one): one for one in tokenizers}.values():
                add_placeholders(tokenizer, vectors, ExitStack())
        checking = copy.copy(self._pipeline)
        checking.backbone = replace(backbone, tokenizers=tokenizers)
        return checking

    def _is_in(self, prompt: str, phrase: str, names: Sequence[str]) -> bool:
        try:
            self.for_checks(names).backbone.token_positions(prompt, phrase)
        except GenerationError:
            return False
        return True
