from __future__ import annotations

import pytest
from PIL import Image

from model.errors import GenerationError
from model.guidance.subjects import References, Subject, subjects_of

RED, BLUE = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
PROMPTS = ["a cat", "a hat and a cat"]


def test_one_picture_or_subject_for_all() -> None:
    expected = [[Subject(picture=RED, word="cat", scope=0.2, scale=1.0)]] * 2
    assert subjects_of(PROMPTS, RED, "cat", 0.2, 1.0) == expected
    assert subjects_of(PROMPTS, [RED, RED], ["cat", "cat"], 0.2, 1.0) == expected
    assert subjects_of(PROMPTS, Subject(picture=RED, word="cat"), None, 0.2, 1.0) == expected


def test_a_subjects_scope_and_scale_override_the_settings() -> None:
    own = Subject(picture=RED, word="cat", scope=0.1, scale=0.0)
    given: list[Subject | list[Subject]] = [Subject(picture=BLUE), [own, Subject(picture=BLUE, word="hat", scope=0.3)]]
    first, second = subjects_of(PROMPTS, given, None, 0.2, 0.5)
    assert first == [Subject(picture=BLUE, scope=0.2, scale=0.5)]
    assert second == [own, Subject(picture=BLUE, word="hat", scope=0.3, scale=0.5)]


@pytest.mark.parametrize(
    ("subjects", "words", "message"),
    [
        ([RED], None, "1 subjects for 2 prompts"),
        (RED, ["cat"], "1 words for 2 prompts"),
        ([RED, []], None, "a list of one or more Subjects"),
        ([RED, [RED, BLUE]], None, "a list of one or more Subjects"),
    ],
)
def test_requests_that_do_not_fit(subjects: list[Image.Image], words: list[str] | None, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        subjects_of(PROMPTS, subjects, words, 0.2, 1.0)


def test_a_picture_given_twice_is_one_reference() -> None:
    """By hand: One2Many in the first prompt, the same picture beside another one in the second."""
    red, blue = Subject(picture=RED), Subject(picture=BLUE)
    references = References.of([[red, red], [blue, red, blue]])
    assert references.pictures == [RED, BLUE]
    assert references.of_prompt == [[0, 0], [1, 0]]
    assert references.of_subject == [[0, 0], [0, 1, 0]]
