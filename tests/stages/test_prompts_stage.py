"""The stage `prompts`: by a grammar, by a language model (a server replaces it), and with captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prompts.schema import VARIATIONS
from stages.contract import StageError
from stages.data.datasets import read_dataset, write_dataset
from stages.data.schemas import CAPTIONS, PROMPTS, SAMPLES
from stages.prompts import stage as prompts_stage
from stages.prompts.declaration import STAGE
from stages.storage import StorePath
from tests.support.contexts import make_context
from tests.support.llm_server import batch, language_model


def rows_of(output: StorePath, name: str = "prompts") -> list[dict[str, str]]:
    return read_dataset(output / name, PROMPTS).to_pylist()


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


@pytest.mark.parametrize("grammar", ["micro", "english"])
def test_quotas_tailored_sets_and_diversity(tmp_path: Path, grammar: str) -> None:
    settings = {"concepts": ["duck"], "prompts_per_concept": 10, "quotas": {"style": 6, "action": 0}}
    context = make_context(tmp_path, prompts={**settings, "tailored_concepts": ["duck"], "grammar": grammar})
    result = prompts_stage.run(context)
    assert result.rows == {"prompts": 10, "tailored": 50}
    counts = Counter(row["variation"] for row in rows_of(context.output))
    assert counts == {"style": 6, "background": 2, "subject": 1, "property": 1}
    assert {row["variation"] for row in rows_of(context.output, "tailored")} == {"tailored"}
    assert 0 < result.metrics["distinct_1"] < result.metrics["distinct_2"] < 1
    assert 0.5 < result.metrics["mean_distance"] < 1


def test_more_prompts_than_the_grammar_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"the micro grammar has only .*lower prompts.prompts_per_concept"):
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


def test_a_language_model_writes_and_no_configuration_pays_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key")
    changes = {"concepts": ["mug", "dog", "hat"], "prompts_per_concept": 7, "prompts_per_request": 5, "concurrency": 2}
    events: list[Mapping[str, Any]] = []
    with language_model(complete_answer) as model:
        endpoint = {"endpoint": model.url, "model": "tiny-lm", "retries": 0}
        context = make_context(tmp_path, events=events, prompts={**changes, **endpoint})
        result = prompts_stage.run(context)
        asked = len(model.requests)
        assert asked == result.metrics["requests"] == 15
        fewer = {**changes, **endpoint, "prompts_per_concept": 6, "quotas": {"background": 2}, "concurrency": 1}
        other = make_context(tmp_path, run={"seed": 9, "folder": str(tmp_path)}, prompts={**fewer, "concepts": ["dog"]})
        again = prompts_stage.run(other)
        assert len(model.requests) == asked
    assert again.rows == {"prompts": 6}
    assert again.metrics["tokens_paid_now"] == 0
    assert again.metrics["tokens"] > 0
    assert result.rows == {"prompts": 21}
    assert result.notes == {"writer": "tiny-lm"}
    assert {row["writer"] for row in rows_of(context.output)} == {"tiny-lm"}
    tokens = [event for event in events if event["event"] == "metric"]
    assert {event["key"] for event in tokens} == {"tokens"}
    assert tokens[-1]["value"] == result.metrics["tokens"]
    assert "sk-secret-key" not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))
    assert len(list((tmp_path / "answers").glob("*.json"))) == asked


def test_answers_may_lie_in_a_folder_of_all_runs(tmp_path: Path) -> None:
    with language_model(complete_answer) as model:
        for name in ("a", "b"):
            settings = {"concepts": ["mug"], "prompts_per_concept": 5, "answers_folder": str(tmp_path / "shared")}
            context = make_context(tmp_path / name, prompts={**settings, "endpoint": model.url})
            prompts_stage.run(context)
        assert len(model.requests) == 5


def test_a_budget_that_is_spent_is_an_error_that_says_where_the_answers_are(tmp_path: Path) -> None:
    with language_model(complete_answer) as model:
        changes = {"concepts": ["mug"], "endpoint": model.url, "token_budget": 12_000, "answer_tokens": 100}
        with pytest.raises(StageError, match=r"prompts\.token_budget .*raise.* kept in .*answers\.$"):
            prompts_stage.run(make_context(tmp_path, prompts=changes))
    assert model.requests


def test_a_damaged_answer_is_asked_for_again_with_a_warning(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    with language_model(complete_answer) as model:
        changes = {"concepts": ["mug"], "prompts_per_concept": 5, "endpoint": model.url}
        for _ in range(2):
            prompts_stage.run(make_context(tmp_path, events=events, prompts=changes))
            next((tmp_path / "answers").glob("*.json")).write_text("{")
        assert len(model.requests) == 6
    assert [event["text"][:17] for event in events if event["event"] == "warning"] == ["1 damaged answers"]


def test_an_endpoint_that_fails_is_an_error_in_one_line(tmp_path: Path) -> None:
    with language_model(lambda *_: 401) as model:
        changes = {"concepts": ["mug"], "endpoint": model.url, "retries": 0}
        with pytest.raises(StageError, match=r"answers 401 .*OPENAI_API_KEY") as caught:
            prompts_stage.run(make_context(tmp_path, prompts=changes))
    assert "\n" not in str(caught.value)
    assert "kept" not in str(caught.value)  # there is nothing


def write_samples(folder: Path, captions: list[str]) -> Path:
    values: dict[str, Any] = {"url": "u", "picture": b"", "width": 1, "height": 1}
    values |= {"original_width": 1, "original_height": 1}
    rows = [{"sample_id": str(number), "caption": text, **values} for number, text in enumerate(captions)]
    write_dataset(folder / "samples", pa.Table.from_pylist(rows, schema=SAMPLES), SAMPLES)
    return folder


CAPTION_SETTINGS = {"concepts": ["mug"], "prompts_per_concept": 5}


def test_captions_that_filter_kept_are_a_source(tmp_path: Path) -> None:
    captions = [
        "two cats on a sofa",
        "a red car in the rain",
        "two cats on the sofa",
        "A dog in the jungle",
        "word " * 41,
        "一只狗在雪里",
        "雪里的狗" * 11,
    ]
    inputs = {"filter": write_samples(tmp_path / "filter", captions)}
    context = make_context(tmp_path, inputs=inputs, prompts={**CAPTION_SETTINGS, "captions": 10})
    result = prompts_stage.run(context)
    written = read_dataset(context.output / "captions", CAPTIONS)["caption"].to_pylist()
    assert sorted(text.replace("the sofa", "a sofa") for text in written) == [
        "a red car in the rain",
        "two cats on a sofa",
        "一只狗在雪里",
    ]
    assert (result.metrics["captions_near_duplicate"], result.metrics["captions_of_benchmarks"]) == (1, 1)
    assert STAGE.inputs(context.config) == ["filter"]
    assert STAGE.inputs(make_context(tmp_path).config) == []


def test_filter_without_a_usable_caption_is_an_error(tmp_path: Path) -> None:
    inputs = {"filter": write_samples(tmp_path / "filter", ["", "cat"])}
    with pytest.raises(StageError, match=r"prompts\.captions to 0"):
        prompts_stage.run(make_context(tmp_path, inputs=inputs, prompts={**CAPTION_SETTINGS, "captions": 10}))
