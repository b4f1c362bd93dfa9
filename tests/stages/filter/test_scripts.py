"""Words and scripts of captions in languages with and without spaces."""
# ruff: noqa: RUF001 - letters that resemble others are what is tested

import pytest

from stages.filter.config import FilterConfig
from stages.filter.scripts import count_words, find_script, letters_in


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a photo of a red mug", 6),
        ("a - b, c", 4),
        ("une tasse à café — rouge", 6),
        ("чашка на столе", 3),
        ("كوب أحمر على الطاولة", 4),
        ("कप मेज पर है", 4),
        ("빨간 머그잔 사진", 3),
        ("cốc cà phê đỏ", 4),
        ("don\u02bct stop", 2),
        ("", 0),
        ("桌上的红杯子", 6),
        ("一只马克杯，旁边有一棵树。", 11),
        ("桌 上 的", 3),
        ("iPhone 15手机壳!", 5),
        ("𠮷野家", 3),
        ("雪の中の赤いマグカップ", 11),
        ("ｺｰﾋｰ", 4),
        ("コーヒー", 4),
        ("か\u3099き", 2),
        ("ถ้วยกาแฟ", 7),
        ("ແກ້ວ", 3),
        ("ကော်ဖီ", 2),
        ("កាហ្វេ", 3),
        ("ཀ་ཁ་ག", 3),
        ("ꦏꦺꦴꦥꦶ", 2),
        ("☕ 杯", 1),
    ],
)
def test_letters_count_where_no_spaces_are_written(caption: str, words: int) -> None:
    assert count_words(caption) == words


@pytest.mark.parametrize(
    ("caption", "script", "expected"),
    [
        ("a red mug", "Latin", (7, 7)),
        ("ａ ｒｅｄ", "LATIN", (4, 4)),
        ("Ångström é", "latn", (9, 9)),
        ("桌上的红杯子", "HAN", (6, 6)),
        ("桌上的红杯子", "Hani", (6, 6)),
        ("5 G 手机 ☕!", "Han", (2, 3)),
        ("雪の中", "Han", (2, 3)),
        ("雪の中", "Jpan", (3, 3)),
        ("コーヒー", "Katakana", (4, 4)),
        ("コーヒー", "Hiragana", (2, 4)),
        ("大 사진", "Kore", (3, 3)),
        ("사진", "Hangul", (2, 2)),
        ("чашка cup", "Cyrillic", (5, 8)),
        ("𝐛𝐨𝐥𝐝", "Latin", (0, 0)),
        ("12 — 3", "Latin", (0, 0)),
        ("ถ้วย", "thai", (3, 3)),
    ],
)
def test_letters_of_a_script(caption: str, script: str, expected: tuple[int, int]) -> None:
    assert letters_in(caption, script) == expected


@pytest.mark.parametrize(
    ("name", "code"), [("Old_Italic", "Ital"), ("old italic", "Ital"), ("OLD-ITALIC", "Ital"), ("Nko", "Nkoo")]
)
def test_names_in_any_spelling(name: str, code: str) -> None:
    assert find_script(name) == {code}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Cyrilic", r"'Cyrilic' is no name of a script.* Cyrillic"),
        ("HANN", r"Han\b"),
        ("Hant", "Chinese characters are Han"),
        ("Chinese", "Chinese characters are Han"),
        ("Common", "no name of a script"),
        ("qqq", "such as Latin"),
    ],
)
def test_unknown_scripts_are_refused_with_the_configuration(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"caption_script: .*{message}"):
        FilterConfig(caption_script=name)
