"""A phrase is found where it is written and nowhere else, by both engines of regular expressions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers

from model.phrases import composed, joins_words, phrase_pattern, tokenizer_pattern

#: Phrase, text, the text with each occurrence as "#".
FOUND = {
    "alone": ("[v]", "a [v] dog", "a # dog"),
    "plural of brackets": ("[v]", "two [v]s", "two [v]s"),
    "possessive": ("[v]", "the [v]'s hat", "the #'s hat"),
    "within Chinese": ("[v]", "一只[v]狗", "一只#狗"),
    "within Chinese, no brackets": ("sks", "一只sks狗", "一只#狗"),
    "part of a Latin word within Chinese": ("sks", "一只risks狗", "一只risks狗"),
    "digits within Chinese": ("v1", "一只v1狗 v12狗", "一只#狗 v12狗"),
    "Chinese comma": ("[v]", "狗,[v]。", "狗,#。"),
    "rare Han": ("[v]", "\U00020000[v]\U0002a6df", "\U00020000#\U0002a6df"),
    "hiragana": ("[v]", "これは[v]です", "これは#です"),
    "katakana": ("<x>", "ソファの上の<x>ネコ", "ソファの上の#ネコ"),
    "prolonged sound": ("[v]", "ー[v]ー", "ー#ー"),
    "half-width katakana": ("[v]", "ﾈ[v]ﾈ", "ﾈ#ﾈ"),
    "Thai": ("[v]", "แมว[v]ตัวหนึ่ง", "แมว#ตัวหนึ่ง"),
    "Lao": ("[v]", "ແມວ[v]ໂຕ", "ແມວ#ໂຕ"),
    "Khmer": ("[v]", "ឆ្មា[v]ក", "ឆ្មា#ក"),
    "Burmese": ("[v]", "ကြောင်[v]က", "ကြောင်#က"),
    "Tibetan": ("[v]", "ཞི་མི[v]ཞི", "ཞི་མི#ཞི"),
    "Korean particle": ("[v]", "[v]를 든 [v]가", "#를 든 #가"),
    "Korean particle, no brackets": ("sks", "sks는", "#는"),
    "Korean word": ("개", "개 무지개 개를", "# 무지개 개를"),
    "Russian letter beside": ("[v]", "кот[v] [v]кот", "кот[v] [v]кот"),
    "Arabic letter beside": ("[v]", "قط[v]", "قط[v]"),
    "Hindi letter beside": ("[v]", "[v]क", "[v]क"),
    "full-width Latin letter beside": ("[v]", "[v]\uff41", "[v]\uff41"),
    "superscript beside": ("sks", "sks²", "sks²"),
    "accent that does not compose": ("sks", "sks\u0308", "sks\u0308"),
    "emoji beside": ("[v]", "🐈[v]🐈", "🐈#🐈"),
    "emoji with a variation selector": ("🐈", "a 🐈\ufe0f", "a #\ufe0f"),
    "a Chinese word": ("狗", "一只狗在雪里", "一只#在雪里"),
    "Chinese class word, with the space that prompts have": ("[v] 狗", "一只[v]狗,[v] 狗", "一只#,#"),
    "Latin class word needs its space": ("[v] dog", "[v]dog [v]  dog", "[v]dog #"),
    "two Chinese words": ("雪 人", "雪人和雪 人", "#和#"),
    "upper case": ("[v]", "一只[V]狗", "一只#狗"),
    "white space of all kinds": ("my cat", "my\u3000cat my\n cat mycat", "# # mycat"),
    "underscore": ("[v]", "[v]_狗 _[v]", "[v]_狗 _[v]"),
    "side by side": ("[v]", "[v][v]", "##"),
}  # fmt: skip


@pytest.mark.parametrize(("phrase", "text", "expected"), FOUND.values(), ids=FOUND)
def test_a_phrase_is_found_where_it_is_written(phrase: str, text: str, expected: str) -> None:
    assert phrase_pattern(phrase).sub("#", composed(text)) == expected
    assert normalizers.Replace(Regex(tokenizer_pattern(phrase)), "#").normalize_str(composed(text)) == expected


@given(
    st.text("v[]s1_ 狗ねแ개é\u0301\u0308²🐈\ufe0f-", min_size=1, max_size=4).filter(lambda text: text.strip() == text),
    st.text("v[]s1_ 狗ねแ개é\u0301\u0308²🐈\ufe0f-V", max_size=12),
)
def test_both_engines_agree(phrase: str, text: str) -> None:
    phrase, text = composed(phrase), composed(text)
    by_python = phrase_pattern(phrase).sub("#", text)
    assert normalizers.Replace(Regex(tokenizer_pattern(phrase)), "#").normalize_str(text) == by_python


@pytest.mark.parametrize(
    ("character", "expected"), [("a", True), ("é", True), ("я", True), ("1", True), ("_", True)]
    + [(other, False) for other in "]>*狗ねแ개🐈 "],
)  # fmt: skip
def test_characters_that_words_go_on_beside(character: str, expected: bool) -> None:
    assert joins_words(character) == expected
