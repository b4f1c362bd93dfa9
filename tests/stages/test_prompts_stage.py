"""The stage `prompts`: by the grammar, and by a language model in Ray tasks (a server replaces the model)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prompts.schema import VARIATIONS
from stages.contract import StageError
from stages.data.datasets import read_dataset
from stages.data.schemas import PROMPTS
from stages.prompts import stage as prompts_stage
from tests.support.contexts import make_context
from tests.support.llm_server import batch, language_model


def test_the_grammar_writes_the_same_set_every_time_and_is_recorded_as_the_writer(tmp_path: Path) -> None:
    tables = []
    for name in ("a", "b"):
        context = make_context(tmp_path / name, prompts={"concepts": ["mug", "toy", "mug"], "prompts_per_concept": 30})
        result = prompts_stage.run(context)
        assert result.rows == {"prompts": 60}
        assert result.notes == {"writer": "grammar"}
        tables.append(read_dataset(context.output / "prompts", PROMPTS))
    assert tables[0] == tables[1]
    rows = tables[0].to_pylist()
    assert {row["writer"] for row in rows} == {"grammar"}
    assert all(f"[v] {row['concept']}" in row["prompt"] for row in rows)
    assert Counter(row["variation"] for row in rows) == dict.fromkeys(VARIATIONS, 12)


def test_more_prompts_than_the_grammar_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"the grammar has only .*lower prompts.prompts_per_concept"):
        prompts_stage.run(make_context(tmp_path, prompts={"prompts_per_concept": 10**6}))


def test_a_key_that_cannot_be_sent_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test\n")
    with pytest.raises(StageError, match=r"OPENAI_API_KEY begins or ends with a line break"):
        prompts_stage.run(make_context(tmp_path, prompts={"endpoint": "http://127.0.0.1:1/v1"}))


def complete_answer(number: int, request: dict[str, Any]) -> str:
    concept = request["messages"][1]["content"].split("[v] ")[1].split('"')[0]
    return batch(*(f"a photo of a [v] {concept} at place {number}-{index}" for index in range(5)))


@pytest.mark.slow
def test_a_language_model_writes_and_finished_concepts_are_not_requested_again(
    tmp_path: Path, ray_cluster: str
) -> None:
    changes = {"concepts": ["mug", "dog", "hat"], "prompts_per_concept": 7, "prompts_per_request": 5, "concurrency": 2}
    with language_model(complete_answer) as model:
        context = make_context(tmp_path, prompts={**changes, "endpoint": model.url, "model": "tiny-lm", "retries": 0})
        result = prompts_stage.run(context)
        asked = len(model.requests)
        assert prompts_stage.run(context) == result
        assert len(model.requests) == asked == 6
    assert result.notes == {"writer": "tiny-lm"}
    rows = read_dataset(context.output / "prompts", PROMPTS).to_pylist()
    assert Counter(row["concept"] for row in rows) == {"mug": 7, "dog": 7, "hat": 7}
    assert {row["writer"] for row in rows} == {"tiny-lm"}


@pytest.mark.slow
def test_an_endpoint_that_fails_is_an_error_in_one_line(tmp_path: Path, ray_cluster: str) -> None:
    with language_model(lambda *_: 401) as model:
        changes = {"concepts": ["mug"], "endpoint": model.url, "retries": 0}
        with pytest.raises(StageError, match=r"answers 401 .*OPENAI_API_KEY") as caught:
            prompts_stage.run(make_context(tmp_path, prompts=changes))
    assert "\n" not in str(caught.value)
