"""Two concepts in one prompt: the prompts, what is loaded, the scores and the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.backbone import load_backbone
from model.concepts.concept import Concept, ConceptToken
from model.concepts.folder import write_concept
from model.guidance.settings import InferenceSettings
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.captions import MAX_WORDS
from model.microworld.shapes import TRAINED_CATEGORIES
from model.pictures.decoding import load_picture
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import JudgeScorer
from pipelines.config.loading import load_config
from tests.benchmarks.support.concept_training import AlbumSubject
from tests.benchmarks.two_concepts import PLACEHOLDERS, PLACES, SCORES, Score, names_of, paint, scores_of, table
from tests.support.subject_folder import png


def a_pair(first: str = "mug", second: str = "robot") -> tuple[AlbumSubject, AlbumSubject]:
    views = [tuple(png(10 * subject + view) for view in range(3)) for subject in range(2)]
    one, other = (
        AlbumSubject(name=f"a {word}", word=word, album=own, views=own)
        for word, own in zip((first, second), views, strict=True)
    )
    return one, other


@pytest.mark.parametrize("word", TRAINED_CATEGORIES)
def test_the_text_encoder_reads_whole_prompts(word: str) -> None:
    names = names_of(a_pair(word, word), learned=True)
    more = load_config("micro", []).customize.vectors - 1
    assert all(len(f"{' and '.join(names)} {place}".split()) + 2 * more <= MAX_WORDS for place in PLACES)


def test_named_concepts_are_loaded_and_no_others(tmp_path: Path) -> None:
    pipeline, pair = RealCustomPipeline(load_backbone(WEIGHTS_FOLDER)), a_pair()
    settings = replace(InferenceSettings(), mask_steps=None).with_steps(1)
    folders = [tmp_path / str(number) for number in range(2)]
    width = pipeline.backbone.text_encoders[0].config.hidden_size
    for number, folder in enumerate(folders):
        vectors = torch.randn(3, width, generator=torch.Generator().manual_seed(number))
        token = ConceptToken(
            placeholder=PLACEHOLDERS[number], word=pair[number].word, subject="", embeddings=(vectors,)
        )
        write_concept(folder, Concept(method="textual_inversion", backbone="micro", tokens=(token,)))
    plain = paint(pipeline, pair, [], settings)
    learned = paint(pipeline, pair, folders, settings)
    assert all(
        picture != before for named in plain for picture, before in zip(learned[named], plain[named], strict=True)
    )
    assert paint(pipeline, pair, [], settings) == plain


def test_a_subject_is_nearest_to_itself() -> None:
    pair = a_pair()
    judge = JudgeScorer.from_pretrained(WEIGHTS_FOLDER / "judge")
    first, second = ([load_picture(one.views[0])] * 4 for one in pair)
    scores = scores_of(judge, pair, {(0,): first, (1,): second, (0, 1): first})
    assert [len(scores[both]) for both in (False, True)] == [8, 8]
    assert all(score.values[0] > score.values[1] for score in scores[False])
    own, other = scores[True][0].values, scores[True][4].values  # of one picture
    assert (own[0], own[2]) == (other[1], other[3])


def test_the_table_has_no_other_one_where_both_are_named() -> None:
    scores = [Score(pair, (0.5, 0.25, 1.0, 0.0)) for pair in ("a", "b")]
    lines = table({"class words": {False: scores, True: scores}}).splitlines()
    assert len(lines) == 4
    assert lines[2].count("(") == len(SCORES)
    assert lines[3].startswith("| class words | both | 0.50 (0.50 to 0.50) |  | 1.00")
