"""Why a request to a language model failed, in the provider's words or in plain ones."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any


class PromptError(Exception):
    """The endpoint fails, or its prompts are not usable. The message is one sentence for the user."""


class StoppedError(PromptError):
    """Nothing more is requested, because another request has failed for good."""


class AnswerTimeoutError(Exception):
    """An answer has begun and does not end."""


def one_line(text: str, length: int = 200) -> str:
    """Join and shorten a text for an error message."""
    return " ".join(text.split())[:length]


#: Fields with a provider's words, the most telling ones first.
_WORDS = (
    "message",
    "msg",
    "detail",
    "details",
    "error_msg",
    "error_message",
    "status_msg",
    "description",
    "error_description",
    "reason",
    "title",
    "error",
    "errors",
    "base_resp",
)
#: Fields with a status.
_STATUSES = (
    "code",
    "status_code",
    "statusCode",
    "status",
    "http_code",
    "http_status",
    "error_code",
    "error",
    "base_resp",
)

#: Statuses of errors that have only a name or words; what is not known is retried like a server's error.
_STATUS_OF_WORDS = {
    429: r"rate.?limit|too many|overload|quota|exhausted|capacity|busy|throttl|try again|concurren",
    401: r"authenticat|unauthori[sz]ed|api.?key|login fail",
    403: r"permission|forbidden|denied",
    404: r"not.?found|does not exist|no such|unknown model",
    400: r"invalid|bad.?request|unsupported|not supported|context length",
}
_UNKNOWN_STATUS = 500

#: Exceptions of HTTPX that come before a request is sent.
_BEFORE_SENDING = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}


def error_in(body: object) -> Any:
    """The error in the body of an answer whose status is a success; None if there is none."""
    if isinstance(body, list) and len(body) == 1:  # Google's form
        body = body[0]
    if not isinstance(body, dict):
        return None
    choices = body.get("choices")
    if words_of(body.get("error")):
        return body["error"]
    if not isinstance(choices, list) or not choices:
        return body if words_of(body) else None
    choice = choices[0] if isinstance(choices[0], dict) else {}
    if words_of(choice.get("error")):
        return choice["error"]
    return "the provider has failed (finish_reason 'error')" if choice.get("finish_reason") == "error" else None


def words_of(error: object) -> str:
    """What a provider says in an error: nested messages, lists of details, JSON in a text, an HTML page's title."""
    if isinstance(error, str):
        return _words_of_text(error)
    if isinstance(error, list):
        return "; ".join(filter(None, map(words_of, error)))
    if not isinstance(error, dict):
        return ""
    said = next((words for name in _WORDS if (words := words_of(error.get(name)))), "")
    if isinstance(error.get("loc"), list):  # FastAPI names the field
        said = f"{'.'.join(map(str, error['loc']))}: {said}"
    metadata = error.get("metadata")  # OpenRouter: what the provider behind it says
    raw = words_of(metadata.get("raw")) if isinstance(metadata, dict) else ""
    return f"{said}: {raw}" if said and raw and raw not in said else said or raw


def status_of(error: object) -> int:
    """The HTTP status that an error in a body stands for."""
    return _number_of(error) or next(
        (status for status, words in _STATUS_OF_WORDS.items() if re.search(words, _names_of(error), re.IGNORECASE)),
        _UNKNOWN_STATUS,
    )


def cause_of(error: BaseException, timeout_seconds: float) -> str:
    """Why there is no connection or no answer, from the chain of exceptions behind `error`."""
    chain = list(_chain(error))
    for link in reversed(chain):
        if cause := _cause(link, timeout_seconds):
            return cause
    last = chain[-1]
    return one_line(f"{type(last).__name__}: {last}" if str(last) else type(last).__name__)


def was_never_sent(error: BaseException) -> bool:
    """Whether a request has failed before the server could get it."""
    return any(type(link).__name__ in _BEFORE_SENDING or isinstance(link, socket.gaierror) for link in _chain(error))


def key_problem(key: str) -> str | None:
    """Why a text cannot be sent as an API key; None if it can. Does not show the key."""
    if key != key.strip():
        character = "a line break" if re.search(r"^\s*[\r\n]|[\r\n]\s*$", key) else "a space"
        return f"begins or ends with {character}"
    if key[:1] in "\"'" and key[:1] == key[-1:]:
        return "is in quotes"
    wrong = re.search(r"[^\x21-\x7e]", key)
    if wrong is None:
        return None
    names = {" ": "a space", "\n": "a line break", "\r": "a line break", "\t": "a tab"}
    return f"contains {names.get(wrong[0], f'the character U+{ord(wrong[0]):04X}')}"


def _words_of_text(text: str) -> str:
    text = text.strip()
    if text.startswith(("{", "[")):
        try:
            return words_of(json.loads(text)) or text
        except (ValueError, RecursionError):
            return text
    if is_html(text):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        return f"an HTML page, {one_line(title[1], 80)!r}" if title and title[1].strip() else "an HTML page"
    return text


def is_html(text: str) -> bool:
    """Whether a text is a web page."""
    return re.match(r"\s*<(?:!doctype html|html|head|body)\b", text, re.IGNORECASE) is not None


def _number_of(error: object) -> int | None:
    if isinstance(error, dict):
        return next((status for name in _STATUSES if (status := _number_of(error.get(name)))), None)
    text = str(error)
    return int(text) if re.fullmatch(r"[45]\d\d", text) else None


def _names_of(error: object) -> str:
    """The texts of an error, which may name its kind."""
    if isinstance(error, dict):
        return " ".join(map(_names_of, error.values()))
    if isinstance(error, list):
        return " ".join(map(_names_of, error))
    return str(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _cause(error: BaseException, timeout_seconds: float) -> str | None:
    text = str(error)
    within = f"within {timeout_seconds:g} s (prompts.timeout_seconds)"
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"its TLS certificate is not accepted: {error.verify_message}; SSL_CERT_FILE may name its authority's"
            )
        case ssl.SSLError() if re.search("WRONG_VERSION|RECORD_LAYER|HTTP_REQUEST|PACKET_LENGTH", text):
            return "it does not speak TLS; its URL begins with http://, not https://"
        case ssl.SSLError():
            return f"TLS fails: {one_line(text)}"
        case socket.gaierror():
            return f"the host name cannot be resolved (DNS): {error.strerror or text}"
        case ConnectionRefusedError():
            return "the connection is refused: no server listens on that port"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
            return "the server closes the connection; it may speak only TLS (https://)"
        case TimeoutError():
            return None  # what waited is in the exceptions above
        case OSError() if error.strerror:
            return error.strerror
    return _cause_by_name(type(error).__name__, text, within)


def _cause_by_name(name: str, text: str, within: str) -> str | None:
    """The cause of an error of HTTPX, of whose two packages the `openai` client uses either."""
    match name:
        case "ConnectTimeout" | "PoolTimeout":
            return f"no connection {within}"
        case "ReadTimeout" | "WriteTimeout" | "AnswerTimeoutError":
            return f"no whole answer {within}" if name == "AnswerTimeoutError" else f"no answer {within}"
        case "RemoteProtocolError" | "ReadError" | "WriteError" | "EndOfStream":
            return f"the server does not speak HTTP, or only with TLS (https://): {one_line(text)}"
        case "ProxyError":
            return f"the proxy (HTTP_PROXY, HTTPS_PROXY) refuses: {one_line(text)}"
        case "TooManyRedirects" | "DecodingError" | "UnsupportedProtocol" | "LocalProtocolError":
            return one_line(text)
    return None
