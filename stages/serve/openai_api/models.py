"""The models of OpenAI's API: the base model with its adapter, and one for each learned concept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from stages.serve.painting import Painters
from stages.serve.served_model import ServedConcept
from stages.serve.web.errors import RequestError, painting_errors

_LISTED = 9  # in a message


class Models:
    """The models that requests can name.

    Args:
        name: Of the base model; `<name>:<concept>` is the base model with a concept.
        painters: Know the concepts, which may change while the server runs.
    """

    def __init__(self, name: str, painters: Painters) -> None:
        self.name = name
        self._painters = painters
        self._created = int(time.time())

    async def entries(self) -> list[dict[str, Any]]:
        """As `GET /v1/models` lists them."""
        return [self._entry(self.name), *map(self.concept_entry, await self._concepts())]

    async def entry(self, model: str) -> dict[str, Any]:
        """As `GET /v1/models/{id}` shows one.

        Raises:
            RequestError: 404; there is no such model.
        """
        entries = await self.entries()
        for entry in entries:
            if entry["id"] == model:
                return entry
        listed = ", ".join(repr(entry["id"]) for entry in entries[:_LISTED])
        message = f"There is no model {model[:80]!r}; this server has {listed}."
        raise RequestError(404, message, "model", "model_not_found")

    async def concepts_of(self, model: str | None, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """The concepts of a request, that of its model and those that it names, and their placeholders.

        Args:
            model: The base model or that of a concept; None: the base model.
            names: With or without the base model's name before them.

        Raises:
            RequestError: 404; there is no such model. Painters refuse concepts that do not exist.
        """
        if model in (None, self.name) and not names:
            return [], []
        prefix = f"{self.name}:"
        of_model = [] if model in (None, self.name) else [(await self.entry(str(model)))["id"]]
        asked = list(dict.fromkeys(name.removeprefix(prefix) for name in (*of_model, *names)))
        known = [concept for concept in await self._concepts() if concept.name in asked]
        return asked, [placeholder for concept in known for placeholder in concept.placeholder.split(", ")]

    async def _concepts(self) -> Sequence[ServedConcept]:
        with painting_errors(0):
            return (await self._painters.check_ready()).concepts

    def _entry(self, identifier: str) -> dict[str, Any]:
        return {"id": identifier, "object": "model", "created": self._created, "owned_by": "realword"}

    def concept_entry(self, concept: ServedConcept) -> dict[str, Any]:
        """The entry of a concept."""
        own = {"placeholder": concept.placeholder, "word": concept.word, "method": concept.method}
        return {**self._entry(f"{self.name}:{concept.name}"), "concept": True, **own}
