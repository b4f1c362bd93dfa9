"""The prompts of a learned concept: the placeholder is before the class word that stands for the subject."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stages.config import Config
from stages.evaluate.cases import Subject
from stages.evaluate.concept import Concept, concept_cases

#: Class word, template -> the prompt.
PROMPTS = [
    ("car", "a cartoon of a {word}", "a cartoon of a [v] car"),
    ("car", "a car park with a {word}", "a car park with a [v] car"),
    ("car", "a scarf on a {word}", "a scarf on a [v] car"),
    ("cat", "concatenated: a {word}", "concatenated: a [v] cat"),
    ("cat", "a CAT scan of a {word}", "a CAT scan of a [v] cat"),
    ("dog", "a hot dog and a {word}", "a hot dog and a [v] dog"),
    ("a", "a photo of {word}", "a photo of [v] a"),
    ("photo", "a photo of a {word}", "a photo of a [v] photo"),
    ("teddy bear", "a bear and a {word}", "a bear and a [v] teddy bear"),
    ("mug", "{word}, {word}", "[v] mug, [v] mug"),
    ("mug", "a {word}", "a [v] mug"),
    ("{word}", "a {word}", "a [v] {word}"),
]


@pytest.mark.parametrize(("word", "template", "prompt"), PROMPTS, ids=[template for _, template, _ in PROMPTS])
def test_the_placeholder_is_before_the_subject_s_word(word: str, template: str, prompt: str) -> None:
    subject = Subject(name="one", word=word, reference=b"", views=())
    concept = Concept(
        folder=Path(), placeholder="[v]", subject=subject, method="xti", learned=True, verdict="it is nearer"
    )
    config = Config()
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, prompts=[template]))
    cases, painted = concept_cases(concept, config)
    assert set(painted) == {prompt}
    assert {case.prompt for case in cases} == {template.replace("{word}", word)}
