"""Lists of text on the command line, and profiles: the types decide what a text means, not YAML 1.1."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import loading
from pipelines.config.loading import load_config, parse_settings
from pipelines.errors import UsageError


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[en, no]", ["en", "no"]),
        ("[on, off, yes, y, n, true, False]", ["on", "off", "yes", "y", "n", "true", "False"]),
        ("[null, ~, None]", ["null", "~", "None"]),
        ("[1984, 1.0, 1_000, 010, 0x10, 1e3, .inf, 1:30]", None),
        ("[2024-01-01, =, <<]", ["2024-01-01", "=", "<<"]),
        ("[yes, 'no', \"on\"]", ["yes", "no", "on"]),
        ("[a: b, {c: d}, ? e]", ["a: b", "{c: d}", "? e"]),
        ("[a {word} on the beach]", ["a {word} on the beach"]),
        ("[{word} in the snow, at night]", ["{word} in the snow", "at night"]),
        ("['a {word}, wet', \"a {word}: \\u00e9\"]", ["a {word}, wet", "a {word}: é"]),
        ("['it''s', the dog's, \"5\\\" high\"]", ["it's", "the dog's", '5" high']),
        ("[a [v] mug, [x, y], {z, w}]", ["a [v] mug", "[x, y]", "{z, w}"]),
        ("[#1, a #2 mug, @home, *, & co, !, %, `x`, | y, > z, - w]", None),
        ('["a" mug, say "hi"]', ['"a" mug', 'say "hi"']),
        ("[mug,]", ["mug"]),
        ("[\n  mug,\n  a long\n  name\n]", ["mug", "a long name"]),
        ("[犬, café, a\u00a0b]", ["犬", "café", "a\u00a0b"]),
        ("[ a ,b,  c  d ]", ["a", "b", "c  d"]),
        ("- no\n- 1984", ["no", "1984"]),
        ("- a: b\n- [c, d]\n- ~", ["a: b", "[c, d]", "~"]),
    ],
)
def test_a_list_of_texts_holds_texts(text: str, items: list[str] | None) -> None:
    expected = items or [item.strip() for item in text[1:-1].split(",")]
    assert parse_settings([f"prompts.concepts={text}"]) == {"prompts.concepts": expected}


def test_a_comma_may_be_part_of_a_sentence_that_must_hold_a_word() -> None:
    text = "[a {word} in the snow, at night, alone, one {word} at sea,'{word}', \"{word}, wet\"]"
    expected = ["a {word} in the snow, at night, alone", "one {word} at sea", "{word}", "{word}, wet"]
    assert parse_settings([f"evaluate.prompts={text}"]) == {"evaluate.prompts": expected}


words = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=30).filter(str.strip)


@given(
    st.lists(words | st.sampled_from(["no", "~", "1_0", "a, b", "'", '"', "[v]", "{word}"]), min_size=1), st.booleans()
)
def test_a_list_of_texts_written_by_yaml_comes_back(texts: list[str], unicode: bool) -> None:
    for style in (True, False):
        text = yaml.safe_dump(texts, default_flow_style=style, allow_unicode=unicode)
        assert parse_settings([f"prompts.concepts={text}"]) == {"prompts.concepts": texts}


def test_a_profile_is_read_by_the_types_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """\ufeff
ingest:
  languages: [no, 1984, "on", ~]
filter:
  languages: null
  max_unsafe: 1e-1
  min_side: 010
prompts: {model: 007, concepts: [on], endpoint: ~}
"""
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr(loading, "PROFILES", tmp_path)
    config = load_config("mine")
    assert config.ingest.languages == ["no", "1984", "on", "~"]
    assert (config.filter.languages, config.filter.max_unsafe, config.filter.min_side) == (None, 0.1, 10)
    assert (config.prompts.model, config.prompts.concepts, config.prompts.endpoint) == ("007", ["on"], None)


@pytest.mark.parametrize(
    "text", ["- a", "a", "filter: [", "filter: {min_side: \x00}", "filter: 3", "filter: {min_side: x}"]
)
def test_a_profile_that_is_wrong_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr(loading, "PROFILES", tmp_path)
    with pytest.raises(UsageError, match=r"mine\.yaml"):
        load_config("mine")
