"""The client with endpoints that work and that fail; a server replaces the language model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prompts.client import MAX_USELESS_ANSWERS, Endpoint, PromptError, PromptWriter
from tests.support.llm_server import batch, language_model


def writer(url: str, **changes: Any) -> PromptWriter:
    settings: dict[str, Any] = {"model": "stub", "prompts_per_request": 3, "timeout_seconds": 5.0, "retries": 2}
    return PromptWriter(Endpoint(base_url=url, **(settings | changes)))


def numbered(number: int, count: int = 3) -> str:
    return batch(*(f"a photo of a [v] mug at place {number}-{index}" for index in range(count)))


def test_requests_ask_for_a_schema_and_alternate_between_the_variations() -> None:
    with language_model(lambda number, _: numbered(number)) as model:
        prompts = writer(model.url).write("mug", 7)
    assert len({prompt.prompt for prompt in prompts}) == 7
    assert [request["response_format"]["type"] for request in model.requests] == ["json_schema"] * 3
    asked = [request["messages"][1]["content"] for request in model.requests]
    assert all('"[v] mug"' in text for text in asked)
    assert [text.split('Set "variation" to "')[1].split('"')[0] for text in asked] == [
        "background",
        "subject",
        "action",
    ]
    assert asked[2].startswith("Write 1 prompts")
    assert "- a photo of a [v] mug at place 0-0" in asked[1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_temporary_errors_are_retried(status: int) -> None:
    with language_model(lambda number, _: status if number == 0 else numbered(number)) as model:
        assert len(writer(model.url).write("mug", 3)) == 3
    assert len(model.requests) == 2


def test_an_endpoint_without_structured_output_gets_plain_requests_from_then_on() -> None:
    def answer(number: int, request: dict[str, Any]) -> str | int:
        return 400 if "response_format" in request else f"Sure!\n```json\n{numbered(number)}\n```"

    with language_model(answer) as model:
        assert len(writer(model.url).write("mug", 6)) == 6
    assert ["response_format" in request for request in model.requests] == [True, False, False]


def test_unusable_prompts_are_dropped_and_requested_again() -> None:
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


def test_a_plain_list_of_strings_is_accepted() -> None:
    with language_model(lambda *_: json.dumps(["a [v] mug at sea", "a [v] mug in a tree"])) as model:
        prompts = writer(model.url).write("mug", 2)
    assert {prompt.variation for prompt in prompts} == {"background"}


def test_a_model_that_repeats_itself_is_an_error_with_the_reason() -> None:
    with (
        language_model(lambda *_: batch("a [v] mug at sea", "a mug")) as model,
        pytest.raises(PromptError, match=r"only 1 of 9 usable prompts for 'mug'.*must occur once|repeated"),
    ):
        writer(model.url).write("mug", 9)
    assert len(model.requests) == 1 + MAX_USELESS_ANSWERS


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (404, 1), (500, 3)])
def test_a_permanent_error_names_the_status_and_the_settings(status: int, tries: int) -> None:
    with (
        language_model(lambda *_: status) as model,
        pytest.raises(PromptError, match=rf"answers {status} for the model 'stub' \(prompts.endpoint"),
    ):
        writer(model.url).write("mug", 1)
    assert len(model.requests) == tries


def test_an_unreachable_endpoint_is_an_error_with_the_number_of_tries() -> None:
    with pytest.raises(PromptError, match="does not answer after 1 tries"):
        writer("http://127.0.0.1:1/v1", retries=0).write("mug", 1)
