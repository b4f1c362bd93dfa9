from __future__ import annotations

from pipelines.config.documentation import PAGE, page
from pipelines.config.keys import configuration_keys


def test_the_page_is_the_generated_one() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m pipelines.config.documentation"


def test_the_page_has_a_row_for_each_key() -> None:
    text = page()
    for name in configuration_keys().keys() - {"profile"}:
        assert text.count(f"\n| `{name}` | ") >= 1
