"""Errors in answers: which they are, what they say, and which status they stand for."""

from __future__ import annotations

from typing import Any

import pytest

from prompts.errors import error_in, key_problem, status_of, words_of

CHOICE = {"message": {"content": "fine"}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"choices": None, "error": {"message": "Too Many Requests", "code": 429}}, 429, "Too Many Requests"),
        ({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429, "slow down"),
        ({"error": {"message": "slow down", "type": "rate_limit_error"}}, 429, "slow down"),
        ({"choices": [], "error": "model is overloaded"}, 429, "model is overloaded"),
        ({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, 429, "quota"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 429, "Overloaded"),
        ([{"error": {"code": 429, "message": "no more", "status": "RESOURCE_EXHAUSTED"}}], 429, "no more"),
        ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": None}, 429, "rate limit"),
        ({"error_code": 18, "error_msg": "Open api qps request limit: too many"}, 429, "qps"),
        ({"object": "error", "message": "max_tokens is too large", "code": 400}, 400, "max_tokens"),
        ({"error": {"message": "bad", "type": "invalid_request_error"}}, 400, "bad"),
        ({"detail": "Invalid model name"}, 400, "Invalid model name"),
        ({"detail": [{"loc": ["body", "n"], "msg": "not an int"}, {"msg": "other"}]}, 500, "body.n: not an int; other"),
        ({"error": {"message": "No auth credentials found", "code": "401"}}, 401, "credentials"),
        ({"base_resp": {"status_code": 1004, "status_msg": "login fail"}}, 401, "login fail"),
        ({"error": {"message": "Insufficient credits", "code": 402}}, 402, "credits"),
        ({"message": "model 'x' not found"}, 404, "not found"),
        ({"success": False, "errors": [{"code": 7000, "message": "No route"}]}, 500, "No route"),
        ({"error": {"error": {"message": "inner"}}, "status": 503}, 500, "inner"),
        ({"choices": [CHOICE | {"error": {"code": 502, "message": "upstream"}}]}, 502, "upstream"),
        ({"choices": [CHOICE | {"finish_reason": "error"}]}, 500, "finish_reason"),
        (
            {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": '{"error": "wait"}'}}},
            429,
            "Provider returned error: wait",
        ),
        ({"error": '{"error": {"message": "in JSON", "code": 503}}'}, 500, "in JSON"),
    ],
)
def test_an_error_in_the_body(body: Any, status: int, words: str) -> None:
    error = error_in(body)
    assert words in words_of(error)
    assert status_of(error) == status


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [CHOICE]},
        {"choices": [CHOICE], "error": None},
        {"choices": [CHOICE], "error": {}, "code": 0, "message": "success"},
        {"choices": [CHOICE], "error": {"message": "", "code": None}},
        {"choices": []},
        {"message": {"role": "assistant", "content": "x"}},
        {},
        [],
        None,
        "text",
    ],
)
def test_no_error(body: Any) -> None:
    assert error_in(body) is None


def test_a_web_page_is_named_with_its_title() -> None:
    assert words_of("<!DOCTYPE html>\n<html><head><title>\nSign in</title></head></html>") == "an HTML page, 'Sign in'"
    assert words_of("<html><body>x</body></html>") == "an HTML page"


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("sk-test\n", "ends with a line break"),
        ("sk-test\r\n", "line break"),
        ("\nsk-test", "line break"),
        (" sk-test", "begins or ends with a space"),
        ("sk-test\u00a0", "begins or ends with a space"),
        ("   ", "a space"),
        ('"sk-test"', "in quotes"),
        ("'sk-test'", "in quotes"),
        ("Bearer sk-test", "contains a space"),
        ("sk-\ntest", "contains a line break"),
        ("sk\ttest", "contains a tab"),
        ("sk-tést", "U+00E9"),
        ("sk-\u200btest", "U+200B"),
        ("sk-\x00", "U+0000"),
        ("\ufeffsk-test", "U+FEFF"),
    ],
)
def test_a_key_that_cannot_be_sent(key: str, problem: str) -> None:
    found = key_problem(key)
    assert found is not None
    assert problem in found
    assert "test" not in found


@pytest.mark.parametrize("key", ["sk-proj-aB3_-x", "none", "a.b/c+d==", "x'y"])
def test_a_key_that_can_be_sent(key: str) -> None:
    assert key_problem(key) is None
