"""Learned concepts that requests can name.

They are in the model only while steps of the requests that name them are taken, so that a request sees its own concepts
and no others. Two versions of a concept, or two concepts with one placeholder, can be painted beside each other.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.concepts.concept import Concept, ConceptError
from model.concepts.customization_settings import placeholder_key
from model.concepts.folder import read_concept, write_concept
from model.concepts.loading import check_concept, load_concept, unload_concepts
from model.concepts.model_parts import ModelParts
from model.concepts.other_files import read_other
from model.concepts.placeholders import add_placeholders
from model.dci.settings import DCISettings
from model.errors import GenerationError
from model.painting.request import RequestFieldError
from model.pipeline import RealCustomPipeline

_KEPT = 8  # concepts and tokenizers in memory
_LISTED = 9  # in a message


@dataclass(frozen=True)
class _Token:
    placeholder: str
    word: str
    vectors: int  # 0: an ordinary word of the tokenizer


@dataclass(frozen=True, eq=False)
class _Offered:
    """A concept that requests can name now; offered again, it is another one."""

    name: str
    folder: Path
    tokens: tuple[_Token, ...]

    def read(self) -> Concept:
        return read_concept(self.folder)


@dataclass(frozen=True, kw_only=True)
class ChosenConcepts:
    """The concepts of a request, which stay as they are, whatever is offered later.

    Attributes:
        concepts: With their weights.
        pipeline: With tokenizers of its own that find the placeholders: to check requests in any thread.
        phrases: How prompts name the subjects: placeholder and class word.
    """

    concepts: tuple[Concept, ...]
    pipeline: RealCustomPipeline
    phrases: list[str]

    def dci(self, prompt: str, strength: float | None, noun: str | None, share: float | None) -> DCISettings | None:
        """DCI for the concept of a prompt; None if no setting of DCI is given.

        Raises:
            RequestFieldError: The prompt does not name one concept with its class word.
        """
        asked = {"injection_strength": strength, "auxiliary_noun": noun, "auxiliary_share": share}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if not given:
            return None
        found = [phrase for phrase in self.phrases if _is_in(self.pipeline, prompt, phrase)]
        if len(found) != 1:
            listed = " or ".join(map(repr, self.phrases)) or "a concept, which needs a model or the field 'concepts'"
            raise RequestFieldError("dci_lambda", f"DCI needs a prompt with one concept: {listed}.")
        return DCISettings(concept=found[0], **given)


class Concepts:
    """The concepts that a pipeline can paint. All methods can be called in any thread.

    Args:
        pipeline: Nobody else loads concepts into it.
    """

    def __init__(self, pipeline: RealCustomPipeline) -> None:
        self._pipeline = pipeline
        self._offered: dict[str, _Offered] = {}
        self._loaded: tuple[Concept, ...] = ()
        self._lock = threading.Lock()
        self._read: Callable[[_Offered], Concept] = lru_cache(_KEPT)(_Offered.read)
        self._without_concepts = self._with_own_tokenizers(pipeline)
        self._with_placeholders = lru_cache(_KEPT)(self._pipeline_for_checks)

    @property
    def names(self) -> list[str]:
        """Of all that are offered."""
        return list(self._offered)

    def check(self, name: str, folder: Path) -> Concept:
        """Read a concept, and check that it fits the model.

        Raises:
            ConceptError: The folder has no concept, or one of another backbone or with too many vectors.
        """
        concept, parts = read_concept(folder), ModelParts.of(self._pipeline)
        with self.using(()):  # loaded concepts lengthen the table of tokens
            check_concept(parts, concept, f"the concept {name}")
        readable = min(tokenizer.model_max_length for tokenizer in parts.tokenizers) - 2  # start and end
        vectors = max((len(tensor) for token in concept.tokens for tensor in token.all_embeddings), default=0)
        if vectors > readable:
            raise ConceptError(f"the concept {name} has {vectors} vectors; the text encoder reads {readable}.")
        return concept

    def convert(self, files: Sequence[Path], folder: Path, *, placeholder: str, word: str, subject: str) -> None:
        """Write a concept of another tool as a folder; see `read_other`.

        Raises:
            ConceptError: The files have no concept, or one of another backbone.
        """
        with self.using(()):
            concept = read_other(files, self._pipeline, placeholder=placeholder, word=word, subject=subject)
        write_concept(folder, concept)

    def offer(self, name: str, folder: Path) -> None:
        """Let requests name a concept.

        Raises:
            ConceptError: See `check`.
        """
        tokens = (
            _Token(token.placeholder, token.word, len(token.all_embeddings[0]) if token.all_embeddings else 0)
            for token in self.check(name, folder).tokens
        )
        self._offered[name] = _Offered(name, folder, tuple(tokens))

    def withdraw(self, name: str) -> None:
        """Let new requests name a concept no longer; those that have been prepared can be painted."""
        self._offered.pop(name, None)

    def choose(self, names: Sequence[str], prompt: str) -> ChosenConcepts:
        """The concepts of a request, which are offered, go together, and are in the prompt.

        Raises:
            RequestFieldError: They are not.
        """
        offered = [self._find(name) for name in names]
        pipeline = self._with_placeholders(
            tuple((token.placeholder, token.vectors) for one in offered for token in one.tokens if token.vectors)
        )
        placeholders: set[str] = set()
        for one in offered:
            if not any(_is_in(pipeline, prompt, token.placeholder) for token in one.tokens):
                written = " or ".join(map(repr, _phrases([one])))
                raise RequestFieldError("prompt", f"it does not name the concept {one.name!r}; write {written}.")
            own = {placeholder_key(token.placeholder) for token in one.tokens}
            if common := placeholders & own:
                raise RequestFieldError(
                    "concepts", f"two concepts have the placeholder {min(common)!r}; name one of them at a time."
                )
            placeholders |= own
        concepts = tuple(map(self._weights, offered))
        return ChosenConcepts(concepts=concepts, pipeline=pipeline, phrases=_phrases(offered))

    @contextmanager
    def using(self, concepts: Sequence[Concept]) -> Iterator[None]:
        """A block in which these concepts are in the model and no others; one block at a time."""
        with self._lock:
            self._use(concepts)
            yield

    def _use(self, concepts: Sequence[Concept]) -> None:
        if concepts_key(self._loaded) == concepts_key(concepts):
            return
        unload_concepts(self._pipeline)
        self._loaded = ()
        if concepts:
            load_concept(self._pipeline, *concepts)
        self._loaded = tuple(concepts)

    @property
    def loaded(self) -> tuple[Concept, ...]:
        """The concepts in the model."""
        return self._loaded

    def _find(self, name: str) -> _Offered:
        offered = self._offered.get(name)
        if offered is None:
            listed = ", ".join(self.names[:_LISTED]) or "none"
            raise RequestFieldError("concepts", f"there is no concept {name!r}; there are: {listed}.")
        return offered

    def _weights(self, offered: _Offered) -> Concept:
        try:
            return self._read(offered)
        except ConceptError as error:  # it was deleted a moment ago
            raise RequestFieldError("concepts", f"the concept {offered.name!r} cannot be read any longer.") from error

    def _pipeline_for_checks(self, vectors: tuple[tuple[str, int], ...]) -> RealCustomPipeline:
        checking = self._with_own_tokenizers(self._without_concepts)
        for tokenizer in {id(one): one for one in checking.backbone.tokenizers}.values():
            add_placeholders(tokenizer, dict(vectors), ExitStack())
        return checking

    @staticmethod
    def _with_own_tokenizers(pipeline: RealCustomPipeline) -> RealCustomPipeline:
        tokenizers = copy.deepcopy(pipeline.backbone.tokenizers)  # one object for both encoders stays one
        checking = copy.copy(pipeline)
        checking.backbone = replace(pipeline.backbone, tokenizers=tokenizers)
        return checking


def concepts_key(concepts: Sequence[Concept]) -> tuple[int, ...]:
    """The same for the same objects, as long as they exist."""
    return tuple(map(id, concepts))


def _phrases(offered: Sequence[_Offered]) -> list[str]:
    return [f"{token.placeholder} {token.word}" for one in offered for token in one.tokens]


def _is_in(pipeline: RealCustomPipeline, prompt: str, phrase: str) -> bool:
    try:
        pipeline.backbone.token_positions(prompt, phrase)
    except GenerationError:
        return False
    return True
