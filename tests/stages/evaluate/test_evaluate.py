"""The stage `evaluate`: its cases, averages, pictures, and the whole stage on Ray."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.files import printable_name
from model.pictures.decoding import load_picture
from stages.config import Config
from stages.contract import StageError
from stages.evaluate.cases import Subject, evaluation_id, load_subjects, make_cases
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.grids import SHOWN_SIDE, data_uri, picture_grid
from stages.evaluate.painter import case_table
from stages.scoring import background_of
from stages.subject_lists import list_subjects
from tests.support.concept_entries import concept_entry
from tests.support.contexts import make_context, on_disk
from tests.support.picture_table import picture_table
from tests.support.subject_folder import png, write_pairs, write_subjects

ARMS = ("text_only", "adapter", "adapter_mask")


def a_subject(name: str = "red_mug", word: str = "mug") -> Subject:
    return Subject(name=name, word=word, reference=png(1), views=(png(2),))


# Cases


def test_a_listing_sets_order_and_class_words(tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / "s", {"zebra_1": "toy", "mug_1": "mug"})
    first, second = load_subjects(folder, 5)
    assert (first.name, first.word, second.name) == ("zebra_1", "toy", "mug_1")
    assert first.reference == png(0)
    assert first.views == (png(1), png(2))
    assert [subject.name for subject in load_subjects(folder, 1)] == ["zebra_1"]


def test_without_a_listing_the_subfolder_is_the_class_word(tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / "s", {"rc_car": "", "cat": ""}, listing=False)
    (folder / "notes.txt").write_text("not a subject")
    (folder / "cat" / "licence.txt").write_text("not a picture")
    assert [(subject.name, subject.word) for subject in load_subjects(folder, 9)] == [
        ("cat", "cat"),
        ("rc_car", "rc car"),
    ]


def test_hidden_and_empty_folders_are_no_subjects(tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / ".s", {"mug": "", ".ipynb_checkpoints": "", "__MACOSX": ""}, listing=False)
    (folder / "mug" / "._00.png").write_bytes(b"\0\5\x16\7")
    (folder / "mug" / ".ipynb_checkpoints").mkdir()
    (folder / "mug" / "folder.png").mkdir()
    (folder / "empty").mkdir()
    (subject,) = load_subjects(folder, None)
    assert (subject.name, len(subject.views)) == ("mug", 2)


def test_a_class_word_must_be_text(tmp_path: Path) -> None:
    unnamed = os.fsdecode(b"caf\xe9 cup")
    folder = write_subjects(tmp_path / "s", {"mug": "", unnamed: ""}, listing=False)
    assert [subject.name for subject in load_subjects(folder, None)] == ["mug"]
    (folder / "mug" / "_MG_0001.JPG").write_bytes(b"")
    subject, pictures = list_subjects(folder)[1]
    assert subject == f"left out the subject {printable_name(folder / unnamed)}: its name is not UTF-8; rename it"
    assert pictures.startswith("left out 1 of the pictures in ")
    assert "_MG_0001.JPG" in pictures


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_listing_is_read_by_its_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / "s", {"a": "Teekännchen"})
    listing = folder / "subjects.json"
    listing.write_text(json.dumps(json.loads(listing.read_text()), ensure_ascii=False), encoding=encoding)
    assert load_subjects(folder, None)[0].word == "Teekännchen"
    listing.write_bytes("[]é".encode("cp1252"))
    with pytest.raises(StageError, match=r"subjects\.json .*save it as UTF-8"):
        load_subjects(folder, None)


def test_the_error_names_an_unusable_subject(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="there is no folder"):
        load_subjects(tmp_path / "nowhere", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="holds no subjects"):
        load_subjects(tmp_path / "empty", 1)
    with pytest.raises(StageError, match="Subject cat has 1 pictures"):
        load_subjects(write_subjects(tmp_path / "single", {"cat": "cat"}, views=1), 1)
    broken = write_subjects(tmp_path / "broken", {"dog": "dog"})
    (broken / "dog" / "01.png").write_bytes(b"no picture at all")
    with pytest.raises(StageError, match=r"Subject dog: .*01\.png"):
        load_subjects(broken, 1)
    (broken / "subjects.json").write_text('[{"word": "dog"}]')
    with pytest.raises(StageError, match=r"subjects\.json.*'subject'"):
        load_subjects(broken, 1)
    (broken / "subjects.json").write_bytes('[{"word": "Zwölf"}]'.encode("cp1252"))
    with pytest.raises(StageError, match=r"subjects\.json .*UTF-8"):
        load_subjects(broken, 1)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_listing_may_have_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / "s", {"mug_1": "mug"})
    listing = folder / "subjects.json"
    listing.write_text(listing.read_text(), encoding=encoding)
    assert load_subjects(folder, 1)[0].word == "mug"


def test_prompts_take_turns_and_no_two_cases_share_a_seed() -> None:
    subjects = [a_subject(f"mug-{number}") for number in range(7)]
    cases = make_cases(subjects, EvaluateConfig(prompts_per_subject=3), seed=100)
    assert len(cases) == 21
    assert [case.seed for case in cases] == list(range(100, 121))
    assert len({case.prompt for case in cases[:10]}) == 10  # all ten backgrounds before one is repeated
    assert cases[2].prompt == "a photo of a mug in the snow"
    assert cases[2].background == "snow"


def test_configured_prompts_replace_the_default_ones() -> None:
    config = EvaluateConfig(prompts=["my {word} among the trees"], prompts_per_subject=1)
    (case,) = make_cases([a_subject()], config, seed=0)
    assert (case.prompt, case.background) == ("my mug among the trees", "forest")


def test_photographs_use_the_prompts_of_dreambench() -> None:
    config = EvaluateConfig(similarity="clip", prompts_per_subject=25)
    objects, live = (make_cases([a_subject(word=word)], config, seed=0) for word in ("teapot", "dog"))
    assert objects[12].prompt == "a teapot with the Eiffel Tower in the background"
    assert live[11].prompt == "a dog wearing a santa hat"
    assert background_of("a teapot in space") is None


def test_scores_are_comparable_only_with_the_same_pictures_prompts_seeds_and_judge() -> None:
    config = EvaluateConfig()
    first = make_cases([a_subject()], config, seed=0)
    same = evaluation_id(first, config, "judge")
    assert evaluation_id(make_cases([a_subject()], config, seed=0), config, "judge") == same
    others = {
        evaluation_id(make_cases([a_subject()], config, seed=1), config, "judge"),
        evaluation_id(make_cases([a_subject(word="toy")], config, seed=0), config, "judge"),
        evaluation_id(first, config, "another judge"),
        evaluation_id(first[:-1], config, "judge"),
        evaluation_id(first, EvaluateConfig(similarity="clip"), "judge"),
    }
    assert len(others) == 5
    assert same not in others


# Pictures of the report


def test_only_large_pictures_are_reduced() -> None:
    assert data_uri(png(0)) == f"data:image/png;base64,{base64.b64encode(png(0)).decode()}"
    case = picture_table()["adobe rgb rgba png"]
    shown = load_picture(base64.b64decode(data_uri(case.data).partition(",")[2]))
    assert shown.tobytes() == load_picture(case.data).tobytes()
    assert data_uri(png(0, (600, 800))).startswith("data:image/jpeg;base64,")
    assert len(data_uri(png(0, (1200, 1600)))) < 3 * SHOWN_SIDE**2


def test_a_grid_has_a_column_for_each_subject(tmp_path: Path) -> None:
    columns = [{"reference": png(1), "adapter": png(2)}, {"reference": png(3), "adapter": png(4)}]
    picture_grid(
        columns, ["a mug in the snow"] * 2, {"reference": "Reference", "adapter": "Adapter"}, tmp_path / "hero.png"
    )
    assert Image.open(tmp_path / "hero.png").width == 150 + 2 * 202


# The whole stage


@pytest.fixture(scope="module")
def inputs(weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    for name in ("curves", "samples"):
        Image.new("RGB", (40, 30)).save(weights["train_adapter"] / f"{name}.png")
    microworld = tmp_path_factory.mktemp("microworld")
    words = {"test-mug-1": "mug", "test-bear-2": "toy", "test-car-3": "car"}
    folder = write_subjects(microworld / "subjects", words)
    write_pairs(folder, [("test-mug-1", "test-bear-2"), ("test-car-3", "test-mug-1")])
    return {**weights, "microworld": microworld}


@pytest.fixture(scope="module")
def concept(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `customize` for two subjects, with an embedding that was not learned."""
    from model.backbone import load_backbone
    from model.concepts.concept import Concept, ConceptToken
    from model.concepts.folder import write_concept

    width = load_backbone(inputs["base"] / "backbone").text_encoders[0].config.hidden_size
    folder = tmp_path_factory.mktemp("customize")
    token = ConceptToken(placeholder="[v]", word="mug", subject="test-mug-1", embeddings=(torch.ones(1, width),))
    entries = [
        concept_entry(name, "mug", learned=learned) for name, learned in (("test-mug-1", True), ("test-bear-2", False))
    ]
    for entry in entries:
        write_concept(folder / entry["folder"], Concept(method="xti", backbone="", tokens=(token,)))
    (folder / "concepts.json").write_text(json.dumps(entries))
    return folder


SMALL: dict[str, Any] = {
    "evaluate": {
        "subjects": 3,
        "prompts_per_subject": 1,
        "batch_size": 2,
        "workers": 1,
        "pairs": 2,
        "mask_subjects": 1,
        "mask_scenes": 2,
    },
    "inference": {"steps": 2, "mask_steps": 1},
}


def test_a_profile_without_a_microworld_needs_a_folder_of_subjects(tmp_path: Path, inputs: dict[str, Path]) -> None:
    from stages.evaluate.stage import run

    given = {name: folder for name, folder in inputs.items() if name != "microworld"}
    with pytest.raises(StageError, match=r"evaluate\.subjects_folder is not set"):
        run(make_context(tmp_path, inputs=given))


@pytest.mark.slow
def test_the_stage_paints_every_case_in_every_arm(
    tmp_path: Path, inputs: dict[str, Path], concept: Path, ray_cluster: str
) -> None:
    from stages.data.datasets import read_dataset
    from stages.data.schemas import MASKS, MULTI_SUBJECT, SCENE_MASKS, SCORES
    from stages.evaluate.mask_quality import RECIPES
    from stages.evaluate.multi_subject_summary import TASKS
    from stages.evaluate.stage import run

    events: list[Mapping[str, Any]] = []
    context = make_context(tmp_path, inputs={**inputs, "customize": concept}, events=events, **SMALL)
    result = run(context)

    rows = read_dataset(context.output / "scores", SCORES).to_pylist()
    cases = {arm: {(row["subject"], row["prompt"], row["seed"]) for row in rows if row["arm"] == arm} for arm in ARMS}
    assert len(cases["text_only"]) == 3
    assert cases["text_only"] == cases["adapter"] == cases["adapter_mask"]
    assert all((row["mask"] is not None) == (row["arm"] == "adapter_mask") for row in rows)
    assert all(Image.open(io.BytesIO(row["picture"])).size == (64, 64) for row in rows)
    assert {row["arm"] for row in rows} == {*ARMS, "concept"}
    multi_subject = read_dataset(context.output / "multi_subject", MULTI_SUBJECT).to_pylist()
    assert {row["task"] for row in multi_subject} == set(TASKS)
    masks = read_dataset(context.output / "masks", MASKS).to_pylist()
    assert {row["recipe"] for row in masks} <= set(RECIPES)  # a random judge need not find an object
    scenes = read_dataset(context.output / "scene_masks", SCENE_MASKS).to_pylist()
    assert {(row["recipe"], row["objects"]) for row in scenes} == {
        (name, count) for name in RECIPES for count in (1, 2)
    }
    counts = {"multi_subject": multi_subject, "masks": masks, "scene_masks": scenes}
    assert result.rows == {"scores": len(rows), **{name: len(found) for name, found in counts.items()}}

    metrics = json.loads((context.output / "metrics.json").read_text())
    assert metrics["evaluation"] == result.notes["evaluation"]
    assert set(metrics["arms"]) == {*ARMS, "concept"}
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"]
    assert set(metrics["multi_subject"]["tasks"]) == set(TASKS)

    page = (context.output / "report" / "index.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "https://" not in page
    assert "Training of the adapter" in page
    assert page.count("<img") > 3 * 5
    assert "Multi-subject and multi-round generation" in page
    assert "Pattern and colours" in page
    assert page.count("XTI (P+)") == 2
    assert page.count("Not learned: nothing is nearer.") == page.count("Learned: it is nearer.") == 1
    painted = {(row["subject"], row["prompt"]) for row in rows if row["arm"] == "concept"}
    assert {subject for subject, _ in painted} == {"test-mug-1", "test-bear-2"}
    for name in ("hero.png", "multi_subject.png", "rounds.png"):
        assert Image.open(on_disk(context.output / "report" / name)).height > 600


@pytest.mark.slow
def test_an_error_of_the_model_becomes_an_error_of_the_stage(
    tmp_path: Path, inputs: dict[str, Path], concept: Path, ray_cluster: str
) -> None:
    from stages.evaluate.stage import run

    evaluate = {**SMALL["evaluate"], "prompts": ["in the snow " * 40 + "a {word}"]}  # more than the encoder reads
    context = make_context(tmp_path, inputs={**inputs, "customize": concept}, **{**SMALL, "evaluate": evaluate})
    with pytest.raises(StageError, match=r"the word '\w+' comes after the \d+ tokens"):  # of whichever batch is first
        run(context)


@pytest.mark.slow
def test_a_picture_does_not_depend_on_its_batch_nor_on_ray(inputs: dict[str, Path], tmp_path: Path) -> None:
    from stages.evaluate.models import ModelPaths, Models
    from stages.evaluate.painter import Painter

    config: Config = make_context(tmp_path, **SMALL).config
    paths = ModelPaths(
        backbone=str(inputs["base"] / "backbone"),
        adapter=inputs["train_adapter"] / "adapter",
    )
    cases = make_cases(load_subjects(inputs["microworld"] / "subjects", 3), config.evaluate, 0)
    painter, table = Painter(config, Models(config, paths)), case_table(cases, ARMS)
    together = painter(table).to_pylist()
    alone = [row for number in range(3) for row in painter(table.slice(number, 1)).to_pylist()]
    for row in together:
        twin = next(other for other in alone if (other["arm"], other["seed"]) == (row["arm"], row["seed"]))
        pixels, others = (np.asarray(Image.open(io.BytesIO(one["picture"])), dtype=int) for one in (row, twin))
        assert np.abs(pixels - others).max() <= 2
        assert row["similarity"] == pytest.approx(twin["similarity"], abs=0.02)
