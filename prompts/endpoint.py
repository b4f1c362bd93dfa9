"""A language model behind an endpoint, and the forms that a request to it may take."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prompts.errors import PromptError, key_problem
from prompts.schema import RichPrompts
from prompts.templates import SYSTEM

_RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "rich_prompts", "strict": True, "schema": RichPrompts.model_json_schema()},
}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A language model, and the settings of the requests.

    Attributes:
        base_url: In the form of the `openai` client, with the version: "https://.../v1".
        model: The model's name at the endpoint.
        api_key: None if the endpoint needs none.
        temperature: Sampling temperature; left out where the model takes none.
        answer_tokens: Tokens of one answer at most, with the model's reasoning.
        timeout_seconds: Time limit of one attempt.
        retries: Retries of one request.

    Raises:
        PromptError: The key cannot be sent.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    temperature: float = 1.0
    answer_tokens: int = 4096
    timeout_seconds: float = 60.0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.api_key and (problem := key_problem(self.api_key)):
            raise PromptError(f"OPENAI_API_KEY {problem}; set it to the key alone.")


@dataclass(frozen=True)
class RequestForm:
    """What a request uses that some endpoints or models do not support."""

    structured: bool = True
    temperature: bool = True
    system_role: bool = True
    limit: Literal["max_tokens", "max_completion_tokens"] | None = "max_tokens"

    def request(self, endpoint: Endpoint, message: str) -> dict[str, Any]:
        """The arguments of the `openai` client for a message of the user."""
        system = {"role": "system", "content": SYSTEM}
        user = {"role": "user", "content": message if self.system_role else f"{SYSTEM}\n\n{message}"}
        request: dict[str, Any] = {"model": endpoint.model, "messages": [system, user] if self.system_role else [user]}
        if self.temperature:
            request["temperature"] = endpoint.temperature
        if self.limit is not None:
            request[self.limit] = endpoint.answer_tokens
        if self.structured:
            request["response_format"] = _RESPONSE_FORMAT
        return request

    def simpler(self, words: str) -> RequestForm | None:
        """The form to try after an error with these words; None if there is none."""
        if self.temperature and re.search(r"temperature.*(support|deprecat)|support.*temperature", words, re.I | re.S):
            return replace(self, temperature=False)
        if self.system_role and re.search(
            r"(system|developer).?(role|prompt|message|instr)|must alternate", words, re.I
        ):
            return replace(self, system_role=False)
        if self.limit is not None and re.search(
            rf"{self.limit}\b.*(not support|unrecogni|not permitted|extra)|"
            rf"(unsupported|unrecogni|unknown|extra).*{self.limit}\b",
            words,
            re.I | re.S,
        ):
            return replace(self, limit="max_completion_tokens" if self.limit == "max_tokens" else None)
        if self.limit is not None and re.search(r"max_(completion_)?tokens|context (length|size|window)", words, re.I):
            return replace(self, limit=None)  # too many for this model
        return replace(self, structured=False) if self.structured else None
