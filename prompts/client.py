"""Prompt sets from a language model behind any OpenAI-compatible endpoint.

The client requests JSON with a schema; if the endpoint does not support `response_format`, it does without a schema.
It validates every prompt, drops duplicates, and requests the missing ones again. The `openai` client itself retries
time-outs, refused connections, 429 and 5xx, with growing waits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import openai

from prompts.schema import VARIATIONS, RichPrompt, RichPrompts, Variation, fault_of, normalize, read_answer
from prompts.templates import SYSTEM, user_message

MAX_USELESS_ANSWERS = 5  # in a row, without a new prompt; then the writer fails
SHOWN_PROMPTS = 20  # existing prompts in a request, so that the model does not repeat them

_RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "rich_prompts", "strict": True, "schema": RichPrompts.model_json_schema()},
}


class PromptError(Exception):
    """The endpoint fails, or its prompts are not usable. The message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A language model, and the settings of the requests.

    Attributes:
        base_url: In the form of the `openai` client, with the version: "https://.../v1".
        model: The model's name at the endpoint.
        api_key: Any text if the endpoint needs none.
        temperature: Sampling temperature.
        prompts_per_request: Prompts in one request.
        timeout_seconds: Time limit of one attempt.
        retries: Retries of one request.
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
    """Writes prompt sets with one endpoint."""

    endpoint: Endpoint
    _structured: bool = field(default=True, init=False)  # whether the endpoint may support response_format
    _client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self._client = openai.OpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.api_key,
            timeout=self.endpoint.timeout_seconds,
            max_retries=self.endpoint.retries,
        )

    def write(self, concept: str, count: int) -> list[RichPrompt]:
        """Write `count` different prompts for `concept`, alternating between the variations.

        Raises:
            PromptError: The endpoint fails, or does not write enough usable prompts.
        """
        found: dict[str, RichPrompt] = {}
        faults: Counter[str] = Counter()
        requests = useless = 0
        while len(found) < count:
            variation = VARIATIONS[requests % len(VARIATIONS)]
            wanted = min(self.endpoint.prompts_per_request, count - len(found))
            answer = self._ask(concept, variation, wanted, list(found)[-SHOWN_PROMPTS:])
            fresh = take_usable(answer, variation, concept, found, faults)
            requests += 1
            useless = 0 if fresh else useless + 1
            if useless == MAX_USELESS_ANSWERS:
                fault, times = faults.most_common(1)[0] if faults else ("no JSON in the answer", requests)
                raise PromptError(
                    f"{self.endpoint.model} at {self.endpoint.base_url} wrote only {len(found)} of {count} usable "
                    f"prompts for {concept!r} in {requests} requests; most frequent error: {fault} ({times} times)."
                )
        return list(found.values())[:count]

    def _ask(self, concept: str, variation: Variation, count: int, avoid: list[str]) -> str:
        """Request prompts; returns the text of the answer, which may be empty."""
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
        """The completion, structured if the endpoint supports it."""
        create: Any = self._client.chat.completions.create
        if self._structured:
            try:
                return create(**request, response_format=_RESPONSE_FORMAT)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                self._structured = False  # if another error was the cause, the plain request raises it
        return create(**request)


def take_usable(
    answer: str, variation: Variation, concept: str, found: dict[str, RichPrompt], faults: Counter[str]
) -> int:
    """Add the new usable prompts of an answer to `found`, and count the faults of the others in `faults`.

    Returns:
        The number of new prompts.
    """
    before = len(found)
    for item in read_answer(answer, variation):
        prompt = normalize(item.prompt)
        fault = fault_of(prompt, concept)
        if fault is None and prompt.lower() in found:
            fault = "repeated"
        if fault is not None:
            faults[fault] += 1
        else:
            found[prompt.lower()] = RichPrompt(prompt=prompt, variation=item.variation)
    return len(found) - before


def one_line(text: str, length: int = 200) -> str:
    """Join and shorten a text for an error message."""
    return " ".join(text.split())[:length]
