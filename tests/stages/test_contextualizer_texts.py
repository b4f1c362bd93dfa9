"""What the Contextualizer learns from: prompts and captions, but no prompt that serves evaluation."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from stages.contextualizer import stage as contextualizer
from stages.contract import StageError
from stages.data.datasets import write_dataset
from stages.data.schemas import CAPTIONS, PROMPTS, content_id
from tests.support.contexts import make_context


def write_sets(folder: Path, prompts: list[str], captions: list[str]) -> Path:
    rows = [
        {
            "prompt_id": content_id("toy", text),
            "concept": "toy",
            "prompt": text,
            "variation": "background",
            "writer": "grammar",
        }
        for text in prompts
    ]
    write_dataset(folder / "prompts", pa.Table.from_pylist(rows, schema=PROMPTS), PROMPTS)
    listed = [{"caption_id": content_id(text), "caption": text} for text in captions]
    write_dataset(folder / "captions", pa.Table.from_pylist(listed, schema=CAPTIONS), CAPTIONS)
    return folder


@pytest.mark.parametrize(
    ("prompts", "captions", "named"),
    [
        (["a [v] toy at sea", "A [v] toy, on the beach."], [], r"'A \[v\] toy, on the beach\.' in .*DreamBench"),
        (["a [v] toy at sea"], ["a toy and a cat in a room"], r"'a toy and a cat in a room' in .*MS-Bench"),
    ],
)
def test_a_training_set_with_a_prompt_of_a_benchmark_is_refused(
    tmp_path: Path, prompts: list[str], captions: list[str], named: str
) -> None:
    inputs = {"prompts": write_sets(tmp_path / "prompts", prompts, captions), "base": tmp_path}
    with pytest.raises(StageError, match=rf"the prompt {named}.*evaluation only.*--force prompts"):
        contextualizer.run(make_context(tmp_path, inputs=inputs))


def test_captions_are_learned_from_as_they_are(tmp_path: Path) -> None:
    folder = write_sets(tmp_path, ["a [v] toy at sea"], ["two cats on a sofa"])
    assert contextualizer.training_texts(folder) == [
        ("toy", "a [v] toy at sea"),
        ("", "two cats on a sofa"),
    ]
