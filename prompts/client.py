"""Questions to a language model behind any OpenAI-compatible endpoint, within a budget and limits of rate.

The client requests JSON with a schema, and does without what an endpoint does not support. Time-outs, refused
connections, 408, 409, 429 and 5xx are retried after the time that the server asks for, or after growing waits. Every
answer is in the store before anything else is done with it.
"""

from __future__ import annotations

import itertools
import re
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import openai

from prompts.answer_store import AnswerStore, Entry, Question
from prompts.connection import connect, json_of
from prompts.endpoint import Endpoint, RequestForm
from prompts.errors import PromptError, StoppedError, cause_of, one_line, words_of
from prompts.rate_limits import RateLimits
from prompts.retries import LONGEST_WAIT_SECONDS, asked_wait, growing_wait, is_temporary, may_have_cost
from prompts.templates import SYSTEM
from prompts.tokens import TokenBudget, most_tokens

_TEMPORARY = {408, 409, 429}  # statuses that say nothing about the form of a request
_MIN_SECRET_LENGTH = 8  # a shorter key, such as "none", may be a word of the message


@dataclass
class ChatClient:
    """Asks one endpoint; many threads may use it at once.

    Attributes:
        store: Answers of this and of earlier runs.
        stopped: Set to send nothing more.
    """

    endpoint: Endpoint
    store: AnswerStore
    budget: TokenBudget = field(default_factory=TokenBudget)
    limits: RateLimits = field(default_factory=RateLimits)
    stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _form: RequestForm = field(default_factory=RequestForm, init=False)
    _client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self._client = connect(self.endpoint)
        key = self.endpoint.api_key or ""
        self.store.secret = key if len(key) >= _MIN_SECRET_LENGTH else None

    def ask(self, message: str, turn: int) -> tuple[dict[str, Any], bool]:
        """The completion of a user's message, and whether it was requested now, not taken from the store.

        Args:
            message: What the user says after the system's message.
            turn: How often the same was asked before; each time has an answer of its own.

        Raises:
            PromptError: The endpoint fails, or the budget has no room for the request.
        """
        if self.stopped.is_set():
            raise StoppedError
        question = self._question(message, turn)
        with self.store.entry(question, self.stopped) as entry:
            self.budget.count_kept(question.key, entry.cost)
            if entry.completion is not None:
                return entry.completion, False
            return self._complete(message, entry), True

    def kept_answer(self, message: str, turn: int) -> dict[str, Any] | None:
        """What `ask` would take from the store; None if it would send a request. Its cost counts in the budget."""
        question = self._question(message, turn)
        entry = self.store.read(question)
        self.budget.count_kept(question.key, entry.cost)
        return entry.completion

    def avoid_structured_output(self) -> None:
        """Do without it from now on: some servers garble it without an error."""
        self._form = replace(self._form, structured=False)

    def redacted(self, words: str) -> str:
        """Words of the endpoint on one line, without the key, which some servers repeat."""
        key = self.endpoint.api_key or ""
        return one_line(words.replace(key, "***") if len(key) >= _MIN_SECRET_LENGTH else words)

    def _question(self, message: str, turn: int) -> Question:
        return Question(
            endpoint=self.endpoint.base_url,
            model=self.endpoint.model,
            messages=({"role": "system", "content": SYSTEM}, {"role": "user", "content": message}),
            temperature=self.endpoint.temperature,
            answer_tokens=self.endpoint.answer_tokens,
            turn=turn,
        )

    def _complete(self, message: str, entry: Entry) -> dict[str, Any]:
        """The completion of a message. What the endpoint does not support is left out, from then on as well."""
        form = lasting = before = self._form
        retries = self.endpoint.retries
        while True:
            try:
                completion = self._send(form, message, retries, entry)
            except openai.APIStatusError as error:
                simpler = form.simpler(words_of(error.response.text))
                if simpler is None:
                    raise PromptError(self._status_sentence(error)) from error
                if simpler.limit is None and self.budget.limit is not None:
                    hint = "; prompts.token_budget needs answers that are limited: set prompts.answer_tokens to fewer"
                    raise PromptError(f"{self._status_sentence(error)}{hint}") from error
                temporary = error.status_code in _TEMPORARY
                retries = 0 if temporary or error.status_code >= 500 else retries  # these have been waited out
                form, lasting = simpler, lasting if temporary else simpler
            else:
                if lasting != before:  # another thread may have changed it meanwhile
                    self._form = lasting
                return completion

    def _send(self, form: RequestForm, message: str, retries: int, entry: Entry) -> dict[str, Any]:
        for attempt in itertools.count():
            try:
                return self._try(form, message, entry)
            except openai.APIStatusError as error:
                asked = asked_wait(error.response.headers)
                if asked is not None and asked > LONGEST_WAIT_SECONDS:
                    sentence = self._status_sentence(error)
                    raise PromptError(
                        f"{sentence}; it asks to wait for {asked:.0f} s: run the stage again then"
                    ) from error
                if attempt >= retries or not is_temporary(error.response):
                    raise
                if asked is not None:
                    self.limits.pause(asked)
                else:
                    self._sleep(growing_wait(attempt))
            except openai.APIConnectionError as error:  # time-outs too
                if attempt >= retries:
                    raise PromptError(self._connection_sentence(error, retries)) from error
                self._sleep(growing_wait(attempt))
        raise AssertionError("unreachable")

    def _try(self, form: RequestForm, message: str, entry: Entry) -> dict[str, Any]:
        """Send one request. What it may cost is reserved before, in the budget and on the disk."""
        request = form.request(self.endpoint, message)
        most = most_tokens(request, self.endpoint.answer_tokens)
        self.budget.reserve(most)
        cost = 0
        try:
            self._sleep(0)
            counted = self.limits.acquire(most, self._sleep)
            entry.begin(most)
            try:
                response = self._client.chat.completions.with_raw_response.create(**request).http_response
                cost = most  # unless it says less
                completion = self._completion_of(response)
                cost = entry.answer(completion, most)
                return entry.completion or completion
            except (openai.APIStatusError, openai.APIConnectionError) as error:
                cost = most if may_have_cost(error) else 0
                raise
            finally:
                if entry.completion is None:
                    entry.fail(most, cost)
                self.limits.correct(counted, cost)
        finally:
            self.budget.settle(most, cost)

    def _completion_of(self, response: Any) -> dict[str, Any]:
        completion = json_of(response)
        if isinstance(completion, dict) and "choices" in completion:
            return completion
        raise PromptError(
            f"the endpoint {self.endpoint.base_url} (prompts.endpoint) does not answer with a completion: "
            f"{self.redacted(words_of(response.text))}{_redirect(response)}{_version_hint(response)}."
        )

    def _sleep(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise StoppedError

    def _connection_sentence(self, error: openai.APIConnectionError, retries: int) -> str:
        return (
            f"the endpoint {self.endpoint.base_url} (prompts.endpoint) does not answer after {retries + 1} tries: "
            f"{cause_of(error, self.endpoint.timeout_seconds).rstrip('.')}."
        )

    def _status_sentence(self, error: openai.APIStatusError) -> str:
        status, response = error.status_code, error.response
        sent = response.extensions.get("sent_status")
        answers = f"{status}" if sent is None else f"{sent} with an error that counts as {status},"
        words = self.redacted(words_of(response.text) or response.reason_phrase)
        unset = "; OPENAI_API_KEY is not set" if status in (401, 403) and self.endpoint.api_key is None else ""
        hint = _version_hint(response) if status in (404, 405) else ""
        return (
            f"the endpoint {self.endpoint.base_url} answers {answers} for the model {self.endpoint.model!r} "
            f"(prompts.endpoint, prompts.model, OPENAI_API_KEY): {words}{unset}{_redirect(response)}{hint}"
        )


def _redirect(response: Any) -> str:
    return f", after a redirect to {response.url}" if response.history else ""


def _version_hint(response: Any) -> str:
    path = response.request.url.path.removesuffix("/chat/completions")
    return "" if re.search(r"/v\d\w*$", path) else "; does the URL end in /v1?"
