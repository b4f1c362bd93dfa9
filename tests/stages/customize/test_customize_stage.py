"""The whole stage `customize` on Ray: two subjects side by side, of which one cannot be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.backbone import load_backbone
from model.concepts.contextualizer import Contextualizer
from model.concepts.loading import load_concept
from stages.contract import StageError
from stages.customize import stage
from tests.support.contexts import make_context, on_disk
from tests.support.prompt_sets import write_prompts
from tests.support.subject_folder import png


def write_subject(folder: Path, *pictures: bytes) -> str:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(picture)
    return str(folder)


def write_contextualizer(folder: Path, backbone: Path) -> Path:
    width = load_backbone(backbone / "backbone").text_encoders[0].config
    psi = Contextualizer(width=width.hidden_size, vocabulary=width.vocab_size, num_layers=1)
    psi.save_pretrained(folder / "contextualizer")
    return folder


@pytest.mark.slow
def test_subjects_are_learned_side_by_side(ray_cluster: str, tmp_path: Path, backbone: Path) -> None:
    inputs = {
        "base": backbone,
        "prompts": write_prompts(tmp_path / "prompts"),
        "contextualizer": write_contextualizer(tmp_path / "contextualizer", backbone),
    }
    subjects = [
        write_subject(tmp_path / "my toy", png(1), png(2), b"cut off"),
        write_subject(tmp_path / "broken", b"no picture"),
    ]
    events: list[Mapping[str, Any]] = []
    context = make_context(
        tmp_path / "run",
        inputs,
        events,
        customize={
            "subjects": subjects,
            "words": ["toy", "mug"],
            "method": "custom_diffusion",
            "steps": 4,
            "batch_size": 2,
            "prior_weight": 1.0,
            "prior_pictures": 2,
            "sample_every": 2,
            "scoring": {"prompts": 2, "steps": 2},
        },
    )
    result = stage.run(context)

    (entry,) = json.loads((context.output / "concepts.json").read_text())
    assert (entry["name"], entry["word"], entry["placeholder"], entry["pictures"]) == ("my toy", "toy", "[v1]", 2)
    assert [point["step"] for point in entry["checkpoints"]] == [2, 4]
    assert isinstance(entry["learned"], bool)
    assert entry["drift"] is not None
    for folder in (entry["folder"], *(point["folder"] for point in entry["checkpoints"])):
        assert load_concept(load_backbone(backbone / "backbone"), on_disk(context.output / folder)) == ["[v1]"]
    for name in ("samples", "curves", "trade_off"):
        assert Image.open(on_disk(context.output / f"{name}.png")).width > 300
    assert result.notes["failed"] == "broken"
    assert {"similarity", "fidelity", "gain", "learned"} <= result.metrics.keys()

    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert any("2.png" in text for text in warnings)
    assert any(text.startswith("broken was not learned: no picture of the subject broken") for text in warnings)
    ended = {event["run"]: event["error"] for event in events if event["event"] == "run_ended"}
    assert ended["my toy"] is None
    assert "broken" in ended["broken"]
    keys = {event["key"] for event in events if event["event"] == "metric" and event["run"] == "my toy"}
    assert {"concept/loss", "concept/mlm", "concept/class", "concept/similarity", "concept/fidelity"} <= keys
    assert [event["step"] for event in events if event["event"] == "sample"] == [2, 4]
    assert events[-1]["event"] == "picture"


@pytest.mark.slow
def test_the_stage_fails_when_no_subject_can_be_learned(ray_cluster: str, tmp_path: Path, backbone: Path) -> None:
    folders = [write_subject(tmp_path / name, b"no picture") for name in ("a", "b")]
    settings: dict[str, Any] = {"subjects": folders, "words": ["toy", "mug"], "mlm": False}
    with pytest.raises(StageError, match=r"none of 2 subjects was learned \(a, b\): a: no picture"):
        stage.run(make_context(tmp_path / "two", {"base": backbone}, customize=settings))
    settings = {"subjects": folders[:1], "words": ["toy"], "mlm": False}
    with pytest.raises(StageError, match=r"^no picture of the subject a can be read"):
        stage.run(make_context(tmp_path / "one", {"base": backbone}, customize=settings))
    settings = {**settings, "placeholders": ["snow"]}
    with pytest.raises(StageError, match="the placeholder 'snow' is a token already"):
        stage.run(make_context(tmp_path / "word", {"base": backbone}, customize=settings))
