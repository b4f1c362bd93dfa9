"""The client with endpoints that work and that fail; a server replaces the language model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from prompts.endpoint import Endpoint
from prompts.errors import PromptError
from prompts.templates import SYSTEM
from prompts.writer import MAX_USELESS_ANSWERS
from tests.support.llm_server import Reply, batch, completion, language_model
from tests.support.prompt_writer import SmallWriter

Writers = Callable[..., SmallWriter]


def numbered(number: int, count: int = 3) -> str:
    return batch(*(f"a photo of a [v] mug at place {number}-{index}" for index in range(count)))


def test_requests_ask_for_a_schema_and_say_what_is_there_already(writer: Writers) -> None:
    with language_model(lambda number, _: numbered(number)) as model:
        prompts = writer(model.url).write("mug", 7)
    assert len({prompt.prompt for prompt in prompts}) == 7
    assert [request["response_format"]["type"] for request in model.requests] == ["json_schema"] * 3
    asked = [request["messages"][1]["content"] for request in model.requests]
    assert all('"[v] mug"' in text for text in asked)
    assert all(text.startswith("Write 3 prompts") for text in asked)
    assert "- a photo of a [v] mug at place 0-0" in asked[1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_temporary_errors_are_retried(writer: Writers, status: int) -> None:
    with language_model(lambda number, _: status if number == 0 else numbered(number)) as model:
        assert len(writer(model.url).write("mug", 3)) == 3
    assert len(model.requests) == 2


def test_unusable_prompts_are_dropped_and_requested_again(writer: Writers) -> None:
    answers = [
        batch("a photo of a mug", "a photo of a [v] dog outside", "A photo of a [V] mug on the moon."),
        batch("a photo of a [v] mug on  the Moon", "a [v] mug and a [v] mug on a table", "a [v] mug in a tree"),
        '{"prompts": [{"prompt": "a [v] mug at sea", "variation": "background"}, {"prompt": "a [v] mu',
        "no JSON at all",
        batch("a [v] mug by the fire"),
    ]
    with language_model(lambda number, _: answers[number]) as model:
        prompts = writer(model.url).write("mug", 4)
    assert [prompt.prompt for prompt in prompts] == [
        "A photo of a [v] mug on the moon",
        "a [v] mug in a tree",
        "a [v] mug at sea",
        "a [v] mug by the fire",
    ]


def test_a_plain_list_of_strings_is_accepted(writer: Writers) -> None:
    with language_model(lambda *_: json.dumps(["a [v] mug at sea", "a [v] mug in a tree"])) as model:
        prompts = writer(model.url).write("mug", 2)
    assert {prompt.variation for prompt in prompts} == {"background"}


def test_a_model_that_repeats_itself_is_an_error_with_the_reason(writer: Writers) -> None:
    with (
        language_model(lambda *_: batch("a [v] mug at sea", "a mug")) as model,
        pytest.raises(PromptError, match=r"only 1 of 9 usable prompts for 'mug'.*must occur once|repeated"),
    ):
        writer(model.url).write("mug", 9)
    assert len(model.requests) == 1 + MAX_USELESS_ANSWERS


@pytest.mark.parametrize(("status", "tries"), [(401, 2), (404, 2), (418, 2), (429, 4), (500, 4), (501, 4)])
def test_a_permanent_error_names_the_status_and_the_settings(writer: Writers, status: int, tries: int) -> None:
    with (
        language_model(lambda *_: status) as model,
        pytest.raises(
            PromptError, match=rf"answers {status} for the model 'stub' \(prompts.endpoint.*answers {status}"
        ),
    ):
        writer(model.url).write("mug", 1)
    assert len(model.requests) == tries  # structured ones with all retries, and a plain one


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 415, 422, 500, 501, 502, 503])
def test_an_endpoint_that_fails_on_response_format_gets_plain_requests_from_then_on(
    writer: Writers, status: int
) -> None:
    def answer(number: int, request: dict[str, Any]) -> str | Reply:
        failure = Reply({"error": {"message": "guided decoding failed", "code": status}}, status=status)
        return failure if "response_format" in request else f"Sure!\n```json\n{numbered(number)}\n```"

    with language_model(answer) as model:
        assert len(writer(model.url, retries=0).write("mug", 6)) == 6
    assert ["response_format" in request for request in model.requests] == [True, False, False]


def test_a_rate_limit_does_not_turn_structured_output_off(writer: Writers) -> None:
    with language_model(lambda number, _: 429 if number in (0, 1) else numbered(number)) as model:
        assert len(writer(model.url, retries=1).write("mug", 6)) == 6
    assert ["response_format" in request for request in model.requests] == [True, True, False, True]


@pytest.mark.parametrize("garbled", ["", "{}", '{"prompts": []}', "\n" * 50])
def test_an_endpoint_that_garbles_structured_output_gets_plain_requests(writer: Writers, garbled: str) -> None:
    with language_model(lambda n, request: garbled if "response_format" in request else numbered(n)) as model:
        assert len(writer(model.url).write("mug", 3)) == 3
    assert ["response_format" in request for request in model.requests] == [True, False]


@pytest.mark.parametrize(
    "words",
    [
        "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) is supported.",
        "Unsupported parameter: 'temperature' is not supported with this model.",
        "`temperature` is deprecated for this model.",
    ],
)
def test_a_model_without_temperature_gets_none_and_keeps_structured_output(writer: Writers, words: str) -> None:
    def answer(number: int, request: dict[str, Any]) -> str | Reply:
        return Reply({"error": {"message": words}}, status=400) if "temperature" in request else numbered(number)

    with language_model(answer) as model:
        assert len(writer(model.url).write("mug", 6)) == 6
    assert ["temperature" in request for request in model.requests] == [True, False, False]
    assert all("response_format" in request for request in model.requests)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "System role not supported"),
        (500, "Conversation roles must alternate user/assistant/user/assistant/..."),
        (400, "Developer instruction is not enabled for models/gemma-3-27b-it"),
    ],
)
def test_a_model_without_a_system_role_gets_the_instructions_from_the_user(
    writer: Writers, status: int, words: str
) -> None:
    def answer(number: int, request: dict[str, Any]) -> str | Reply:
        with_system = request["messages"][0]["role"] == "system"
        return Reply({"error": {"message": words}}, status=status) if with_system else numbered(number)

    with language_model(answer) as model:
        assert len(writer(model.url, retries=0).write("mug", 6)) == 6
    assert [len(request["messages"]) for request in model.requests] == [2, 1, 1]
    assert model.requests[-1]["messages"][0]["content"].startswith(SYSTEM)


def test_a_temperature_that_is_out_of_range_is_an_error(writer: Writers) -> None:
    failure = Reply({"error": {"message": "temperature must be between 0 and 1"}}, status=400)
    with (
        language_model(lambda *_: failure) as model,
        pytest.raises(PromptError, match=r"answers 400 .*temperature must be between 0 and 1"),
    ):
        writer(model.url).write("mug", 3)


TOO_MANY = {
    "id": None,
    "choices": None,
    "error": {"message": "Provider returned error: Too Many Requests", "code": 429},
}


def test_an_error_in_an_answer_that_says_200_is_waited_out_like_its_status(writer: Writers) -> None:
    with language_model(lambda number, _: Reply(TOO_MANY) if number < 2 else numbered(number)) as model:
        assert len(writer(model.url).write("mug", 3)) == 3
    assert len(model.requests) == 3


@pytest.mark.parametrize(
    ("body", "tries", "words"),
    [
        (TOO_MANY, 3, "answers 200 with an error that counts as 429, .*Too Many Requests"),
        ({"choices": [], "error": "something broke"}, 3, "counts as 500, .*something broke"),
        ({"error": {"message": "Insufficient credits", "code": 402}}, 2, "counts as 402, .*Insufficient credits"),
        ({"detail": "no such model 'stub'"}, 2, "counts as 404, .*no such model"),
        (b"", 3, "counts as 500, "),
    ],
)
def test_an_error_that_stays_in_answers_that_say_200_is_shown(
    writer: Writers, body: Any, tries: int, words: str
) -> None:
    with language_model(lambda *_: Reply(body)) as model, pytest.raises(PromptError, match=words):
        writer(model.url, retries=1).write("mug", 3)
    assert len(model.requests) == tries


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "text/html", "an HTML page, 'Sign in'"),
        (b"<html>", "application/json", "an HTML page"),
        (b"Ollama is running", "text/plain", "Ollama is running"),
        (b"{broken", "application/json", "{broken"),
        (b'{"status": "ok"}', "application/json", '{"status": "ok"}'),
        (b"[]", "application/json", r"\[\]"),
        (b"\xff\xfe\x00", "application/octet-stream", ""),
    ],
)
def test_what_is_no_completion_is_shown_with_the_setting(
    writer: Writers, body: bytes, content_type: str, words: str
) -> None:
    with (
        language_model(lambda *_: Reply(body, headers={"Content-Type": content_type})) as model,
        pytest.raises(PromptError, match=rf"prompts.endpoint\) does not answer with a completion: {words}"),
    ):
        writer(model.url).write("mug", 3)
    assert len(model.requests) == 1


def test_a_url_without_its_version_gets_a_hint(writer: Writers) -> None:
    with language_model(lambda *_: "") as model, pytest.raises(PromptError, match=r"404 .*does the URL end in /v1\?"):
        writer(model.url.removesuffix("/v1")).write("mug", 3)


def test_a_redirect_is_named(writer: Writers) -> None:
    moved = Reply({}, status=301, headers={"Location": "/elsewhere"})
    with (
        language_model(lambda *_: moved) as model,
        pytest.raises(PromptError, match=r"redirect to http://.*/elsewhere"),
    ):
        writer(model.url, retries=0).write("mug", 3)


def test_a_query_in_the_url_stays_behind_the_path(writer: Writers) -> None:
    with language_model(lambda number, _: numbered(number)) as model:
        assert len(writer(f"{model.url}?api-version=2&x=1").write("mug", 3)) == 3


UNUSABLE_PROXIES = [
    {"HTTP_PROXY": "http://127.0.0.1:9"},
    {"http_proxy": "127.0.0.1:9"},
    {"ALL_PROXY": "socks5://127.0.0.1:9"},
    {"all_proxy": "socks4://127.0.0.1:9"},
    {"http_proxy": "http://127.0.0.1:9", "no_proxy": "[::1],fe80::/10"},
]


@pytest.mark.parametrize("variables", UNUSABLE_PROXIES, ids=str)
def test_an_endpoint_on_this_machine_is_asked_without_a_proxy(
    writer: Writers, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with language_model(lambda number, _: numbered(number)) as model:
        for url in (model.url, model.url.replace("127.0.0.1", "localhost")):
            assert len(writer(url, retries=0).write("mug", 3)) == 3


def test_a_proxy_that_cannot_be_used_for_another_machine_is_named(
    writer: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks4://127.0.0.1:9")
    with pytest.raises(PromptError, match=r"proxy settings .*ALL_PROXY.*prompts\.endpoint: .*socks4"):
        writer("http://llm.example/v1")


def test_chunks_of_an_answer_are_joined(writer: Writers) -> None:
    chunks = [{"type": "thinking", "thinking": [{"type": "text", "text": numbered(9)}]}]
    with language_model(
        lambda n, _: completion({"content": [*chunks, {"type": "text", "text": numbered(n)}]})
    ) as model:
        prompts = writer(model.url).write("mug", 3)
    assert [prompt.prompt[-3:] for prompt in prompts] == ["0-0", "0-1", "0-2"]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (completion({"content": None, "refusal": "I cannot help."}), "the model refuses: I cannot help."),
        (completion({"content": "<think>hm"}, finish_reason="length"), "finish_reason 'length'"),
        (Reply({"choices": []}), "the answer is empty"),
    ],
)
def test_answers_without_prompts_are_an_error_with_the_reason(writer: Writers, reply: Reply, words: str) -> None:
    with language_model(lambda *_: reply) as model, pytest.raises(PromptError, match=words):
        writer(model.url).write("mug", 3)
    assert len(model.requests) == MAX_USELESS_ANSWERS


def test_the_key_is_not_in_a_message_and_a_missing_one_is_named(writer: Writers) -> None:
    def answer(number: int, request: dict[str, Any]) -> Reply:
        return Reply({"error": {"message": "Incorrect API key sk-secret-key provided"}}, status=401)

    with language_model(answer) as model:
        with pytest.raises(PromptError, match=r"Incorrect API key [*]{3} provided$"):
            writer(model.url, api_key="sk-secret-key").write("mug", 3)
        with pytest.raises(PromptError, match="OPENAI_API_KEY is not set"):
            writer(model.url).write("mug", 3)
    assert "sk-secret-key" not in repr(Endpoint(base_url="", model="", api_key="sk-secret-key"))


def test_a_key_that_cannot_be_sent_is_refused_at_once(writer: Writers) -> None:
    with pytest.raises(PromptError, match=r"OPENAI_API_KEY begins or ends with a line break; set it"):
        writer("http://127.0.0.1:1/v1", api_key="sk-test\n")
