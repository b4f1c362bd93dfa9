"""Tags of languages, as metadata of many origins spells them."""

import re

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stages.data.languages import language_pattern


@pytest.mark.parametrize(
    ("wanted", "tag", "expected"),
    [
        (["en"], "en", True),
        (["EN"], "en", True),
        (["en"], "En-us", True),
        (["en"], "en_GB", True),
        (["en"], " en ", True),
        (["zh-cn"], "zh_CN", True),
        (["zh_cn"], "ZH-CN", True),
        (["zh"], "zh-Hans-CN", True),
        (["de", "en"], "en-AU", True),
        ([" de "], "de", True),
        (["en"], "eng", False),
        (["en-US"], "en", False),
        (["zh-cn"], "zh-TW", False),
        (["en"], "", False),
        (["e."], "en", False),
        (["en"], "xen", False),
        (["en"], "fr\nen", False),
        (["nothing (1|2)"], "nothing (1|2)", True),
    ],
)
def test_a_language_has_regions_in_any_spelling(wanted: list[str], tag: str, expected: bool) -> None:
    pattern = language_pattern(wanted)
    assert bool(re.match(pattern, tag, re.IGNORECASE)) is expected
    assert pc.match_substring_regex(pa.array([tag]), pattern, ignore_case=True).to_pylist() == [expected]
