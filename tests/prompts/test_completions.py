"""The text of a completion in every shape that servers send, and why there is none."""

from __future__ import annotations

from typing import Any

import pytest

from prompts.completions import text_of, why_empty


def completion(message: Any, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": message} | choice]}


@pytest.mark.parametrize(
    "message",
    [
        {"content": "the text"},
        {"content": ["the", " text"]},
        {"content": [{"type": "text", "text": "the "}, {"type": "text", "text": "text"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "draft"}]}, {"text": "the text"}]},
        {"content": [{"type": "reasoning", "text": "draft"}, {"type": "output_text", "text": "the text"}]},
        {"content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": {"value": "the text"}}]},
        {"content": [{"type": "message", "content": [{"type": "output_text", "text": "the text"}]}, None, 3]},
        {"content": [{"type": "image_url", "image_url": {"url": "x"}}, "the text"]},
        {"content": {"type": "text", "text": "the text"}},
        {"content": {"value": "the text"}},
        {"content": "the text", "reasoning_content": "draft", "reasoning": "draft"},
        {"content": "the text", "reasoning_details": [{"type": "reasoning.text", "text": "draft"}]},
        {"content": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "the text"}}]},
        {"content": "", "function_call": {"name": "f", "arguments": "the text"}},
        "the text",
    ],
)
def test_the_text_is_found(message: Any) -> None:
    assert text_of(completion(message)) == "the text"


@pytest.mark.parametrize(
    "message",
    [
        {"content": {"prompts": ["x"]}},
        {"content": None, "parsed": {"prompts": ["x"]}},
        {"content": [{"prompts": ["x"]}]},
        {"tool_calls": [{"function": {"arguments": {"prompts": ["x"]}}}]},
    ],
)
def test_json_that_the_server_has_read_becomes_text_again(message: Any) -> None:
    assert text_of(completion(message)) == '{"prompts": ["x"]}'


@pytest.mark.parametrize("choice", [{"text": "the text"}, {"delta": {"content": "the text"}}])
def test_older_and_partial_forms_of_a_choice(choice: dict[str, Any]) -> None:
    assert text_of({"choices": [choice]}) == "the text"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": {}},
        {"choices": ["x"]},
        {"choices": [{}]},
        completion(None),
        completion({"content": None}),
        completion({"content": 3}),
        completion({"content": None, "tool_calls": "x"}),
        completion({"content": None, "tool_calls": ["x", {"function": None}]}),
        completion({"content": None, "reasoning_content": "draft"}),
        completion({"content": [{"type": "video", "text": "draft"}, {"type": "new", "data": 1}]}),
    ],
)
def test_without_text_there_is_none(body: dict[str, Any]) -> None:
    assert text_of(body) == ""
    assert why_empty(body, "") == "the answer is empty"


@pytest.mark.parametrize(
    ("body", "text", "words"),
    [
        (completion({"content": None, "refusal": "I cannot\nhelp."}), "", ["the model refuses: I cannot help."]),
        (completion({"content": ""}, finish_reason="length"), "", ["empty", "finish_reason 'length'"]),
        (completion({"content": ""}, finish_reason="content_filter"), "", ["empty", "'content_filter'"]),
        (completion({"content": "Sorry."}), "Sorry.", ["no prompts", "'Sorry.'"]),
    ],
)
def test_why_an_answer_holds_no_prompt(body: dict[str, Any], text: str, words: list[str]) -> None:
    assert all(word in why_empty(body, text) for word in words)
