"""Prompt sets from a language model behind any OpenAI-compatible endpoint.

The client requests JSON with a schema, and does without what an endpoint does not support. It validates every prompt,
drops duplicates, and requests the missing ones again. The `openai` client itself retries time-outs, refused
connections, 408, 409, 429 and 5xx, with growing waits.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import openai

from prompts.answers import read_answer
from prompts.completions import text_of, why_empty
from prompts.errors import PromptError, cause_of, error_in, key_problem, one_line, status_of, words_of
from prompts.schema import VARIATIONS, RichPrompt, RichPrompts, fault_of, normalize
from prompts.templates import SYSTEM, user_message

MAX_USELESS_ANSWERS = 5  # in a row, without a new prompt; then the writer fails
SHOWN_PROMPTS = 20  # existing prompts in a request, so that the model does not repeat them

_RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "rich_prompts", "strict": True, "schema": RichPrompts.model_json_schema()},
}
_TEMPORARY = {408, 409, 429}  # statuses that say nothing about the form of a request
_MIN_SECRET_LENGTH = 8  # a shorter key, such as "none", may be a word of the message


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A language model, and the settings of the requests.

    Attributes:
        base_url: In the form of the `openai` client, with the version: "https://.../v1".
        model: The model's name at the endpoint.
        api_key: None if the endpoint needs none.
        temperature: Sampling temperature; left out where the model takes none.
        prompts_per_request: Prompts in one request.
        timeout_seconds: Time limit of one attempt.
        retries: Retries of one request.

    Raises:
        PromptError: The key cannot be sent.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    temperature: float = 1.0
    prompts_per_request: int = 20
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

    def request(self, endpoint: Endpoint, message: str) -> dict[str, Any]:
        """The arguments of the `openai` client for a message of the user."""
        system = {"role": "system", "content": SYSTEM}
        user = {"role": "user", "content": message if self.system_role else f"{SYSTEM}\n\n{message}"}
        request: dict[str, Any] = {"model": endpoint.model, "messages": [system, user] if self.system_role else [user]}
        if self.temperature:
            request["temperature"] = endpoint.temperature
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
        return replace(self, structured=False) if self.structured else None


@dataclass
class PromptWriter:
    """Writes prompt sets with one endpoint."""

    endpoint: Endpoint
    _form: RequestForm = field(default_factory=RequestForm, init=False)
    _client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self._client = connect(self.endpoint)

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
            completion = self._complete(user_message(concept, variation, wanted, list(found)[-SHOWN_PROMPTS:]))
            text = text_of(completion)
            prompts = read_answer(text, variation)
            if not prompts:
                faults[self._redacted(why_empty(completion, text))] += 1
                self._form = replace(self._form, structured=False)  # some servers garble it without an error
            fresh = take_usable(prompts, concept, found, faults)
            requests += 1
            useless = 0 if fresh else useless + 1
            if useless == MAX_USELESS_ANSWERS:
                fault, times = faults.most_common(1)[0]
                raise PromptError(
                    f"{self.endpoint.model} at {self.endpoint.base_url} wrote only {len(found)} of {count} usable "
                    f"prompts for {concept!r} in {requests} requests; most frequent error: {fault} ({times} times)."
                )
        return list(found.values())[:count]

    def _complete(self, message: str) -> dict[str, Any]:
        """The completion of a message. What the endpoint does not support is left out, from then on as well."""
        form = lasting = self._form
        retries = self.endpoint.retries
        while True:
            try:
                completion = self._send(form, message, retries)
            except openai.APIStatusError as error:
                simpler = form.simpler(words_of(error.response.text))
                if simpler is None:
                    raise PromptError(self._status_sentence(error)) from error
                temporary = error.status_code in _TEMPORARY
                retries = 0 if temporary or error.status_code >= 500 else retries  # these have been waited out
                form, lasting = simpler, lasting if temporary else simpler
            else:
                self._form = lasting
                return completion

    def _send(self, form: RequestForm, message: str, retries: int) -> dict[str, Any]:
        create: Any = self._client.with_options(max_retries=retries).chat.completions.with_raw_response.create
        try:
            response = create(**form.request(self.endpoint, message)).http_response
        except openai.APIConnectionError as error:  # time-outs too
            raise PromptError(
                f"the endpoint {self.endpoint.base_url} (prompts.endpoint) does not answer after {retries + 1} tries: "
                f"{cause_of(error, self.endpoint.timeout_seconds).rstrip('.')}."
            ) from error
        completion = _json_of(response)
        if isinstance(completion, dict) and "choices" in completion:
            return completion
        raise PromptError(
            f"the endpoint {self.endpoint.base_url} (prompts.endpoint) does not answer with a completion: "
            f"{self._redacted(words_of(response.text))}{_redirect(response)}{_version_hint(response)}."
        )

    def _status_sentence(self, error: openai.APIStatusError) -> str:
        status, response = error.status_code, error.response
        sent = response.extensions.get("sent_status")
        answers = f"{status}" if sent is None else f"{sent} with an error that counts as {status},"
        words = self._redacted(words_of(response.text) or response.reason_phrase)
        unset = "; OPENAI_API_KEY is not set" if status in (401, 403) and self.endpoint.api_key is None else ""
        hint = _version_hint(response) if status in (404, 405) else ""
        return (
            f"the endpoint {self.endpoint.base_url} answers {answers} for the model {self.endpoint.model!r} "
            f"(prompts.endpoint, prompts.model, OPENAI_API_KEY): {words}{unset}{_redirect(response)}{hint}"
        )

    def _redacted(self, words: str) -> str:
        """Words of the endpoint on one line, without the key, which some servers repeat."""
        key = self.endpoint.api_key or ""
        return one_line(words.replace(key, "***") if len(key) >= _MIN_SECRET_LENGTH else words)


def connect(endpoint: Endpoint) -> openai.OpenAI:
    """The client of an endpoint.

    Raises:
        PromptError: The environment names a proxy that cannot be used.
    """
    base_url, _, query = endpoint.base_url.partition("?")  # the client would append its path to the query
    return openai.OpenAI(
        base_url=base_url,
        default_query=dict(parse_qsl(query)),
        api_key=endpoint.api_key or "none",
        timeout=endpoint.timeout_seconds,
        max_retries=endpoint.retries,
        http_client=_http_client(base_url),
    )


def _http_client(base_url: str) -> Any:
    hooks = {"response": [_give_error_its_status]}
    if _is_loopback(urlsplit(base_url).hostname or ""):
        # No proxy can reach this machine, and an unusable one must not be in the way. Without the environment HTTPX
        # would not read SSL_CERT_FILE either, as this context does.
        return openai.DefaultHttpxClient(event_hooks=hooks, trust_env=False, verify=ssl.create_default_context())
    try:
        return openai.DefaultHttpxClient(event_hooks=hooks)
    except Exception as error:  # of several kinds and packages, such as ImportError for a SOCKS proxy
        raise PromptError(
            f"the proxy settings of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) cannot be used for "
            f"prompts.endpoint: {one_line(str(error))}"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _give_error_its_status(response: Any) -> None:
    """Set the status of an answer that says 200 and holds an error, so that the `openai` client waits and retries."""
    if response.is_success:
        response.read()
        error = error_in(_json_of(response)) if response.content.strip() else "the answer is empty"
        if error is not None:
            response.extensions["sent_status"] = response.status_code
            response.status_code = status_of(error)


def _json_of(response: Any) -> Any:
    """The body of an HTTP answer; None if it is not JSON."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _redirect(response: Any) -> str:
    return f", after a redirect to {response.url}" if response.history else ""


def _version_hint(response: Any) -> str:
    path = response.request.url.path.removesuffix("/chat/completions")
    return "" if re.search(r"/v\d\w*$", path) else "; does the URL end in /v1?"


def take_usable(prompts: Iterable[RichPrompt], concept: str, found: dict[str, RichPrompt], faults: Counter[str]) -> int:
    """Add the new usable prompts to `found`, and count the faults of the others in `faults`.

    Returns:
        The number of new prompts.
    """
    before = len(found)
    for item in prompts:
        prompt = normalize(item.prompt)
        fault = fault_of(prompt, concept)
        if fault is None and prompt.lower() in found:
            fault = "repeated"
        if fault is not None:
            faults[fault] += 1
        else:
            found[prompt.lower()] = RichPrompt(prompt=prompt, variation=item.variation)
    return len(found) - before
