"""The models of OpenAI's API: the base model with its adapter, and one for each learned concept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from stages.serve.served_model import ServedConcept
from stages.serve.web.errors import RequestError


class Models:
    """The models that requests can name.

    Args:
        name: Of the base model.
        concepts: `<name>:<concept>` is the base model with a concept.
    """

    def __init__(self, name: str, concepts: Sequence[ServedConcept]) -> None:
        self.name = name
        self._concepts = {concept.name: concept for concept in concepts}
        self._created = int(time.time())

    def entries(self) -> list[dict[str, Any]]:
        """As `GET /v1/models` lists them."""
        return [self._entry(self.name), *map(self._concept_entry, self._concepts.values())]

    def entry(self, model: str) -> dict[str, Any]:
        """As `GET /v1/models/{id}` shows one.

        Raises:
            RequestError: 404; there is no such model.
        """
        for entry in self.entries():
            if entry["id"] == model:
                return entry
        listed = ", ".join(repr(entry["id"]) for entry in self.entries()[:9])
        message = f"There is no model {model[:80]!r}; this server has {listed}."
        raise RequestError(404, message, "model", "model_not_found")

    def concepts_of(self, model: str | None, names: Sequence[str]) -> list[str]:
        """The concepts of a request: that of its model, and those that it names, with or without the model's name.

        Raises:
            RequestError: 404; there is no such model. Painters refuse concepts that do not exist.
        """
        prefix = f"{self.name}:"
        of_model = [] if model is None else [self.entry(model)["id"].removeprefix(self.name).removeprefix(":")]
        plain = [name.removeprefix(prefix) for name in names]
        return list(dict.fromkeys(name for name in (*of_model, *plain) if name))

    def placeholders(self, concepts: Sequence[str]) -> list[str]:
        """As prompts write these concepts."""
        known = [self._concepts[name] for name in concepts if name in self._concepts]
        return [placeholder for concept in known for placeholder in concept.placeholder.split(", ")]

    def _entry(self, identifier: str) -> dict[str, Any]:
        return {"id": identifier, "object": "model", "created": self._created, "owned_by": "realword"}

    def _concept_entry(self, concept: ServedConcept) -> dict[str, Any]:
        own = {"placeholder": concept.placeholder, "word": concept.word, "method": concept.method}
        return {**self._entry(f"{self.name}:{concept.name}"), "concept": True, **own}
