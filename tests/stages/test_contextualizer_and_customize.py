"""The contextualizer stage on a handful of prompts, and the customize stage on its output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.torch import load_file

from model.concepts.contextualizer import Contextualizer
from stages.contextualizer import stage as contextualizer
from stages.contract import StageError
from stages.customize import stage as customize
from stages.customize.config import CustomizeConfig
from stages.data.datasets import write_dataset
from stages.data.schemas import PROMPTS, content_id
from tests.support.contexts import make_context
from tests.support.random_backbone import write_random_backbone

TRAINER = {"workers": 2, "checkpoint_every": 100}


def write_prompts(folder: Path) -> Path:
    backgrounds = ("on the beach", "in the snow", "on the grass", "in the forest", "on a city street", "in the ocean")
    rows = [
        {
            "prompt_id": content_id(concept, background),
            "concept": concept,
            "prompt": f"a [v] {concept} {background}",
            "variation": "background",
            "writer": "grammar",
        }
        for concept in ("toy", "mug", "ball", "duck")
        for background in backgrounds
    ]
    write_dataset(folder / "prompts", pa.Table.from_pylist(rows, schema=PROMPTS), PROMPTS)
    return folder


def write_subjects(folder: Path) -> Path:
    place = folder / "subjects" / "toy" / "test-1"
    place.mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02d}.png")
    pictures = [f"toy/test-1/{number:02d}.png" for number in range(4)]
    album = ["toy/test-1/album.png"]
    listing = [{"subject": "test-1", "word": "toy", "category": "bear", "pictures": pictures, "album": album}]
    (folder / "subjects" / "subjects.json").write_text(json.dumps(listing))
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    write_random_backbone(folder / "base" / "backbone")
    return {
        "base": folder / "base",
        "prompts": write_prompts(folder / "prompts"),
        "microworld": write_subjects(folder / "microworld"),
    }


def test_prompts_lose_their_placeholder_and_are_split_by_their_sentences() -> None:
    """The sentence around the concept decides, so that a held-out sentence is new whatever it is about."""
    concepts = ("toy", "coffee mug", "duck")
    prompts = [(concept, f"a [v] {concept} {number}") for number in range(300) for concept in concepts]
    train, held_out = contextualizer.split_prompts(prompts)
    assert sorted(train + held_out) == sorted(f"a {concept} {number}" for number in range(300) for concept in concepts)
    assert 30 <= len(held_out) <= 180
    numbers = [prompt.split()[-1] for prompt in held_out]
    assert all(numbers.count(number) == len(concepts) for number in numbers)
    assert contextualizer.split_prompts(prompts[::-1])[1] == held_out[::-1]


@pytest.mark.slow
def test_contextualizer_then_customize(ray_cluster: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    context = make_context(
        tmp_path / "contextualizer", inputs, contextualizer={"steps": 10, "batch_size": 8, "trainer": TRAINER}
    )
    result = contextualizer.run(context)
    assert {"held_out_accuracy", "majority_accuracy", "unigram_accuracy", "held_out_positions"} <= result.metrics.keys()
    folder = context.output / "contextualizer"
    assert Contextualizer.from_pretrained(folder).config["num_layers"] == 4
    assert len(json.loads((folder / "prompts.json").read_text())) == 24

    events: list[Mapping[str, Any]] = []
    context = make_context(
        tmp_path / "customize",
        {**inputs, "contextualizer": context.output},
        events,
        customize={"steps": 4, "batch_size": 2},
        inference={"steps": 2, "mask_steps": 1},
    )
    result = customize.run(context)
    concept = context.output / "concept"
    assert load_file(concept / "learned_embeds.safetensors")["[v]"].shape == (1, 128)
    described = json.loads((concept / "concept.json").read_text())
    assert described["method"] == "textual_inversion"
    assert described["backbone"] == "backbone"
    named = {key: described["tokens"][0][key] for key in ("placeholder", "word", "subject")}
    assert named == {"placeholder": "[v]", "word": "toy", "subject": "test-1"}
    assert Image.open(context.output / "samples.png").size == (256, 192)
    assert {"diffusion", "mlm"} <= result.metrics.keys()
    assert [event["step"] for event in events if event.get("key") == "concept/mlm"] == [1, 2, 3, 4]

    unknown = make_context(
        tmp_path / "unknown", dict(context.inputs), customize={"word": "zebra", "subject": str(tmp_path / "pictures")}
    )
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (80, 64)).save(tmp_path / "pictures" / "one.png")
    with pytest.raises(StageError, match="the class word 'zebra' is not in the text encoder's vocabulary"):
        customize.run(unknown)


def test_subject_errors(inputs: dict[str, Path], tmp_path: Path) -> None:
    def find(**settings: Any) -> customize.Subject:
        return customize.find_subject(CustomizeConfig(**settings), inputs)

    assert find(word="toy").name == "test-1"
    assert [path.name for path in find(word="toy", pictures="album").pictures] == ["album.png"]
    with pytest.raises(StageError, match=r"'mug': set customize.word to one of toy"):
        find(word="mug")
    with pytest.raises(StageError, match="is not a folder"):
        find(subject=str(tmp_path / "nowhere"))
    with pytest.raises(StageError, match="has no picture"):
        find(subject=str(tmp_path))
    broken = tmp_path / "one.png"
    broken.write_text("no picture")
    assert find(subject=str(tmp_path), word="dog").pictures == [broken]


def test_rich_prompts_are_about_the_word(tmp_path: Path) -> None:
    listed = [{"concept": "mug", "prompt": "a [v] mug at night"}, {"concept": "toy", "prompt": "a [v] toy in the snow"}]
    (tmp_path / "prompts.json").write_text(json.dumps(listed))
    own = customize.rich_prompts(tmp_path / "prompts.json", CustomizeConfig(word="toy", placeholder="<c>"))
    assert own == ["a <c> toy in the snow"]
    others = customize.rich_prompts(tmp_path / "prompts.json", CustomizeConfig(word="dog"))
    assert others == ["a [v] dog at night", "a [v] dog in the snow"]
