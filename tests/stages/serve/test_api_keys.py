"""API keys in the environment, and addresses that need them."""

from __future__ import annotations

import pickle

import pytest

from stages.contract import StageError
from stages.serve.api_keys import ApiKeys, check_exposure, parse_api_keys
from stages.serve.config import ServeConfig


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("abc", {"key-1": "abc"}),
        ("abc,def", {"key-1": "abc", "key-2": "def"}),
        (" abc ,\n def \r\n", {"key-1": "abc", "key-2": "def"}),
        ("abc,,", {"key-1": "abc"}),
        ("anna=abc\nben=def", {"anna": "abc", "ben": "def"}),
        ("anna=abc,def", {"anna": "abc", "key-2": "def"}),
        ("anna=a=b", {"anna": "a=b"}),
        ("anna=YWJj==", {"anna": "YWJj=="}),
        ("YWJjZA==", {"key-1": "YWJjZA=="}),
        ("YWJjZGU=", {"key-1": "YWJjZGU="}),
        ("sk-proj_1.2~3/4+5", {"key-1": "sk-proj_1.2~3/4+5"}),
        ("a/b=c", {"key-1": "a/b=c"}),  # no name has a slash
    ],
)
def test_keys_and_their_names(text: str, keys: dict[str, str]) -> None:
    parsed = parse_api_keys(text)
    assert {name: parsed.find(key.encode()) for name, key in keys.items()} == {name: name for name in keys}
    assert len(parsed.digests) == len(keys)
    assert parsed.find(b"") is parsed.find(b"other") is None


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "\n", "a key", "anna=a key", "schlüssel", "secret\x00", "abc,abc", "anna=abc,anna=def", "a\tb"],
)
def test_what_no_request_can_send_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(StageError, match=r"REALWORD_API_KEYS.*key,key") as error:
        parse_api_keys(text)
    assert not any(word in str(error.value) for word in ("abc", "anna", "secret", "schl"))


def test_only_hashes_are_passed_on() -> None:
    keys = parse_api_keys("anna=topsecret")
    assert b"topsecret" not in pickle.dumps(keys)
    assert repr(keys) == "ApiKeys()"
    assert not parse_api_keys(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    check_exposure(ServeConfig(host=host), ApiKeys())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "fe80::1%eth0", "no.such.host.invalid"])
def test_other_machines_need_a_key_or_a_setting(host: str) -> None:
    with pytest.raises(StageError, match=rf"serve\.host={host} .*REALWORD_API_KEYS.*serve\.allow_anonymous=true"):
        check_exposure(ServeConfig(host=host), ApiKeys())
    check_exposure(ServeConfig(host=host), parse_api_keys("abc"))
    check_exposure(ServeConfig(host=host, allow_anonymous=True), ApiKeys())
