"""Prompt sets from a language model behind any OpenAI-compatible endpoint.

The endpoint is asked for JSON to a schema; one that does not know `response_format` is asked again without. Every
prompt is checked, repeated ones are dropped, and what is missing is asked for again. The `openai` client itself retries
time-outs, refused connections, 429 and 5xx, with growing waits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import openai

from prompts.schema import VARIATIONS, RichPrompt, RichPrompts, Variation, fault_of, normalise, read_answer
from prompts.templates import SYSTEM, user_message

BARREN_REQUESTS = 5  # so many answers in a row without a new prompt, and the writer gives up
AVOIDED = 20  # prompts that are shown to the model so that it does not repeat them

_RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "rich_prompts", "strict": True, "schema": RichPrompts.model_json_schema()},
}


class PromptError(Exception):
    """The prompts cannot be had. The message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the language model is and how to ask it.

    Attributes:
        base_url: As the `openai` client wants it, with the version: "https://.../v1".
        model: The model's name there.
        api_key: Any text for endpoints that want none.
        temperature: Of the sampling.
        prompts_per_request: How many prompts are asked for at once.
        timeout_seconds: Of one try.
        retries: Further tries of one request.
    """

    base_url: str
    model: str
    api_key: str = "none"
    temperature: float = 1.0
    prompts_per_request: int = 20
    timeout_seconds: float = 60.0
    retries: int = 3


@dataclass
class PromptWriter:
    """Asks one endpoint for the prompts of one concept after another."""

    endpoint: Endpoint
    _structured: bool = field(default=True, init=False)  # whether the endpoint knows response_format, as far as we know
    _client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self._client = openai.OpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.api_key,
            timeout=self.endpoint.timeout_seconds,
            max_retries=self.endpoint.retries,
        )

    def write(self, concept: str, count: int) -> list[RichPrompt]:
        """`count` different prompts for `concept`, the variations in turn.

        Raises:
            PromptError: The endpoint fails, or does not come up with enough usable prompts.
        """
        found: dict[str, RichPrompt] = {}
        faults: Counter[str] = Counter()
        requests = barren = 0
        while len(found) < count:
            variation = VARIATIONS[requests % len(VARIATIONS)]
            wanted = min(self.endpoint.prompts_per_request, count - len(found))
            answer = self._ask(concept, variation, wanted, list(found)[-AVOIDED:])
            fresh = take_usable(answer, variation, concept, found, faults)
            requests += 1
            barren = 0 if fresh else barren + 1
            if barren == BARREN_REQUESTS:
                fault, times = faults.most_common(1)[0] if faults else ("no JSON in the answer", requests)
                raise PromptError(
                    f"{self.endpoint.model} at {self.endpoint.base_url} wrote only {len(found)} of {count} usable "
                    f"prompts for {concept!r} in {requests} requests; most often: {fault} ({times} times)."
                )
        return list(found.values())[:count]

    def _ask(self, concept: str, variation: Variation, count: int, avoid: list[str]) -> str:
        """The text of one answer, which may be empty."""
        request: dict[str, Any] = {
            "model": self.endpoint.model,
            "temperature": self.endpoint.temperature,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": user_message(concept, variation, count, avoid)},
            ],
        }
        try:
            completion = self._complete(request)
        except openai.APIStatusError as error:
            raise PromptError(
                f"the endpoint {self.endpoint.base_url} answers {error.status_code} for the model "
                f"{self.endpoint.model!r} (prompts.endpoint, prompts.model, OPENAI_API_KEY): {one_line(str(error))}"
            ) from error
        except openai.APIConnectionError as error:  # time-outs too
            raise PromptError(
                f"the endpoint {self.endpoint.base_url} (prompts.endpoint) does not answer after "
                f"{self.endpoint.retries + 1} tries: {one_line(str(error))}"
            ) from error
        choices = getattr(completion, "choices", None)
        return (choices[0].message.content or "") if choices else ""

    def _complete(self, request: dict[str, Any]) -> Any:
        """The completion, structured when the endpoint can do that."""
        create: Any = self._client.chat.completions.create
        if self._structured:
            try:
                return create(**request, response_format=_RESPONSE_FORMAT)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                self._structured = False  # when something else was wrong, the plain request says so
        return create(**request)


def take_usable(
    answer: str, variation: Variation, concept: str, found: dict[str, RichPrompt], faults: Counter[str]
) -> int:
    """Put the usable prompts of an answer that are new into `found`; count what is wrong with the others.

    Returns:
        How many were new.
    """
    before = len(found)
    for item in read_answer(answer, variation):
        prompt = normalise(item.prompt)
        fault = fault_of(prompt, concept)
        if fault is None and prompt.lower() in found:
            fault = "repeated"
        if fault is not None:
            faults[fault] += 1
        else:
            found[prompt.lower()] = RichPrompt(prompt=prompt, variation=item.variation)
    return len(found) - before


def one_line(text: str, length: int = 200) -> str:
    """For error messages."""
    return " ".join(text.split())[:length]
