"""The settings of the stage `prompts`: what can be the base URL of an endpoint, and quotas that add up."""

from __future__ import annotations

import pytest

from pipelines.config.loading import load_config
from pipelines.errors import UsageError
from stages.prompts.quotas import counts_of


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8997/v1", "does not begin with http:// or https://"),
        ("localhost:8000", "does not begin with http:// or https://"),
        ("api.openai.com/v1", "does not begin with http:// or https://"),
        ("//host/v1", "does not begin with http:// or https://"),
        ("http:/host/v1", "does not begin with http:// or https://"),
        ("ftp://host", "does not begin with http:// or https://"),
        ('"http://host/v1"', "does not begin with http:// or https://"),
        ("https://https://host/v1", "port"),
        ("http://host:/v1", "port"),
        ("http://host:0/v1", "port"),
        ("http://host:99999/v1", "Port"),
        ("http://host:80:80/v1", "Port"),
        ("http://user:secret@host/v1", "a user or a password"),
        ("http://host/v1?api-key=secret", "contains a key, 'api-key'"),
        ("http://host/v1?a=b&Access_Token=secret", "contains a key, 'Access_Token'"),
        ("http://host/v1?subscription-key=secret&a=b", "contains a key"),
        ("http://host name/v1", "contains ' '"),
        ("http://<host>/v1", "contains '<'"),
        ("http://host\u200b/v1", "contains '\\u200b'"),
        ("http://host/v1#x", "contains '#'"),
        ("http://", "host"),
        ("http://a..b/v1", "host"),
        ("http://a,b/v1", "host"),
        ("http://[::1/v1", "IPv6"),
        ("https://host/v1/chat/completions", "leave out what follows the version"),
        ("https://host/v1/models", "leave out what follows the version"),
    ],
)
def test_a_wrong_endpoint_is_refused_with_the_reason(url: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("micro", [f"prompts.endpoint={url}"])
    sentence = str(caught.value)
    assert sentence.startswith("prompts.endpoint takes a URL that starts with http(s):// or null, not ")
    assert words in sentence
    assert "secret" not in sentence


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000",
        "HTTPS://host/v1/",
        "http://[::1]:8000/v1",
        "http://bücher.example/v1",
        "http://h_1/v1?a=b",
    ],
)
def test_a_right_endpoint_is_taken(url: str) -> None:
    assert load_config("micro", [f"prompts.endpoint={url}"]).prompts.endpoint == url


@pytest.mark.parametrize(
    ("quotas", "counts"),
    [
        ([], [3, 2, 2, 2, 2]),
        (["style=0"], [3, 3, 3, 0, 2]),
        (["style=5"], [2, 2, 1, 5, 1]),
        (["style=11"], [0, 0, 0, 11, 0]),
        (["background=1", "subject=2", "action=3", "style=4", "property=1"], [1, 2, 3, 4, 1]),
    ],
)
def test_quotas_and_equal_shares_of_the_rest(quotas: list[str], counts: list[int]) -> None:
    settings = load_config(
        "micro", ["prompts.prompts_per_concept=11", *(f"prompts.quotas.{q}" for q in quotas)]
    ).prompts
    assert list(counts_of(settings.quotas, 11).values()) == counts


@pytest.mark.parametrize(
    "quotas",
    [["style=12"], ["style=6", "action=6"], ["background=1", "subject=1", "action=1", "style=1", "property=1"]],
)
def test_quotas_that_do_not_add_up_are_refused(quotas: list[str]) -> None:
    with pytest.raises(UsageError, match=r"prompts.*quotas add up to \d+, which does not fit prompts_per_concept=11"):
        load_config("micro", ["prompts.prompts_per_concept=11", *(f"prompts.quotas.{q}" for q in quotas)])


def test_the_large_profiles_write_english() -> None:
    assert [load_config(name).prompts.grammar for name in ("micro", "sd15", "sdxl")] == ["micro", "english", "english"]
