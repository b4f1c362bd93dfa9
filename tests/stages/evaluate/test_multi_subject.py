"""The stage `evaluate` beside its arms: pairs of subjects, rounds, and mask quality."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from model.guidance.settings import InferenceSettings
from model.microworld.captions import MAX_WORDS, VOCABULARY
from model.scoring.metrics import bootstrap_interval
from stages.config import Config
from stages.contract import StageError
from stages.data.schemas import MASKS
from stages.evaluate.cases import load_subjects, make_cases
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.experiments import Experiments
from stages.evaluate.mask_quality import RECIPES, MaskPainter, mask_table, recipe_downscales
from stages.evaluate.mask_summary import summarize_masks, summarize_scene_masks
from stages.evaluate.models import ModelPaths, Models
from stages.evaluate.multi_subject import MultiSubjectPainter, pair_table
from stages.evaluate.multi_subject_summary import TASKS, summarize_multi_subject
from stages.evaluate.pairs import load_pairs, make_pair_cases
from stages.evaluate.report_multi_subject import (
    describe_masks,
    describe_multi_subject,
    describe_scene_masks,
    write_grids,
)
from stages.evaluate.scene_masks import TIMESTEPS, SceneMaskMeter, draw_scenes, scene_table
from stages.evaluate.summary import ARMS
from tests.support.contexts import make_context
from tests.support.subject_folder import png, write_pairs, write_subjects

pytestmark = pytest.mark.slow

WORDS = {"mug-1": "mug", "bear-2": "toy", "car-3": "car"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    subjects = write_subjects(tmp_path_factory.mktemp("subjects"), WORDS)
    return write_pairs(subjects, [("mug-1", "bear-2"), ("car-3", "mug-1")])


# Cases


def test_pairs_have_the_order_of_their_listing(folder: Path) -> None:
    first, second = load_pairs(folder, 5)
    assert [subject.name for subject in first.subjects] == ["mug-1", "bear-2"]
    assert (first.together, second.together) == (png(1000), png(1001))
    assert load_pairs(folder, 1) == [first]
    assert load_pairs(folder, 0) == []


def test_a_folder_without_a_listing_has_no_pairs(tmp_path: Path) -> None:
    assert load_pairs(write_subjects(tmp_path / "s", WORDS), 5) == []


@pytest.mark.parametrize("pairs", [[("mug-1", "cup-9")], [("mug-1", "mug-1")], [("mug-1", "bear-2", "car-3")]])
def test_invalid_pairs_are_refused(tmp_path: Path, pairs: list[tuple[str, ...]]) -> None:
    folder = write_pairs(write_subjects(tmp_path / "s", WORDS), pairs)
    with pytest.raises(StageError, match="are not two known subjects with different class words"):
        load_pairs(folder, 1)


def test_the_error_names_an_unreadable_listing_or_picture(tmp_path: Path) -> None:
    folder = write_pairs(write_subjects(tmp_path / "s", WORDS), [("mug-1", "car-3")])
    (folder / "pair-0.png").write_bytes(b"no picture")
    with pytest.raises(StageError, match=r"The pair mug-1 and car-3: .*pair-0\.png"):
        load_pairs(folder, 1)
    (folder / "pairs.json").write_text('[{"subjects": ["mug-1", "car-3"]}]')
    with pytest.raises(StageError, match=r"pairs\.json.*'together'"):
        load_pairs(folder, 1)


def test_a_listing_of_pairs_is_read_by_its_byte_order_mark(tmp_path: Path) -> None:
    folder = write_pairs(write_subjects(tmp_path / "s", WORDS), [("mug-1", "car-3")])
    listing = folder / "pairs.json"
    text = listing.read_text()
    listing.write_text(text, encoding="utf-16")
    assert len(load_pairs(folder, 1)) == 1
    listing.write_text(text.replace("together", "together\u00e9"), encoding="latin-1")
    with pytest.raises(StageError, match=r"pairs\.json .*UTF-8"):
        load_pairs(folder, 1)


def test_prompts_name_both_subjects_and_each_phrase_has_the_word_of_the_last_round(folder: Path) -> None:
    first, second = make_pair_cases(load_pairs(folder, 2), EvaluateConfig(), seed=7)
    assert (first.prompt, first.seed) == ("a photo of a mug and a toy on the beach", 7)
    assert (second.prompt, second.seed) == ("a photo of a car and a mug in the desert", 8)
    assert [(one.phrase, one.prompt) for one in first.rounds] == [
        ("mug", "a photo of a striped mug in the desert"),
        ("striped mug", "a photo of a small striped mug in the snow"),
        ("small striped mug", "a photo of a small striped mug on the grass"),
    ]
    for prompt in (first.prompt, *(one.prompt for one in first.rounds)):
        assert set(prompt.split()) <= set(VOCABULARY)
        assert len(prompt.split()) <= MAX_WORDS


def test_the_recipes_are_those_of_table_v() -> None:
    config = InferenceSettings(mask_cross_downscales=[2])
    found = [list(recipe_downscales(recipe, config, [1, 2, 4]).values()) for recipe in RECIPES]
    assert found == [[[1, 2, 4], []], [[2], []], [[2], [1, 2, 4]], [[2], [1]]]


# Workers


@pytest.fixture(scope="module")
def loaded(weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Models]:
    folder = tmp_path_factory.mktemp("context")
    config: Config = make_context(folder, inference={"steps": 3, "mask_steps": 2}).config
    backbone, adapter = weights["base"] / "backbone", weights["train_adapter"] / "adapter"
    return config, Models(config, ModelPaths(backbone=str(backbone), adapter=adapter))


def pixels(picture: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(Image.open(io.BytesIO(picture)), dtype=np.int64)


def test_each_task_gets_its_references_and_masks(folder: Path, loaded: tuple[Config, Models]) -> None:
    painter = MultiSubjectPainter(*loaded)
    case = make_pair_cases(load_pairs(folder, 1), EvaluateConfig(), seed=3)[0]
    rows = painter(pair_table([case])).to_pylist()
    by_task = {task: [row for row in rows if row["task"] == task] for task in TASKS}
    assert [len(found) for found in by_task.values()] == [2, 2, 2, 1, 1, 1]
    assert [row["subject"] for row in by_task["many_to_many"]] == ["mug-1", "bear-2"]

    plain = painter.pipeline(case.prompt, settings=loaded[0].inference, seeds=3)
    text_only = pixels(by_task["text_only"][0]["picture"])
    assert np.abs(text_only - np.asarray(plain.images[0], dtype=np.int64)).max() <= 1
    assert np.abs(text_only - pixels(by_task["many_to_many"][0]["picture"])).max() > 1
    assert (pixels(by_task["many_to_many"][1]["reference"]) == pixels(png(10))).all()
    for row in by_task["one_to_many"]:
        assert (pixels(row["reference"]) == pixels(png(1000))).all()
    for before, after in (("round_1", "round_2"), ("round_2", "round_3")):
        assert (pixels(by_task[before][0]["picture"]) == pixels(by_task[after][0]["reference"])).all()

    masks = [pixels(row["mask"]) > 0 for row in by_task["many_to_many"]]
    assert not (masks[0] & masks[1]).any()
    assert [mask.mean() for mask in masks] == [0.125, 0.125]  # half of the default scope each


def test_own_and_other_similarity_swap_with_the_views_of_the_subjects(
    folder: Path, loaded: tuple[Config, Models]
) -> None:
    table = pair_table(make_pair_cases(load_pairs(folder, 1), EvaluateConfig(), seed=3))
    views = table.column("views").to_pylist()
    exchanged = table.set_column(
        table.schema.get_field_index("views"), "views", pa.array([views[0][::-1]], table.schema.field("views").type)
    ).set_column(0, "subjects", pa.array([["exchanged-1", "exchanged-2"]]))
    rows, others = (MultiSubjectPainter(*loaded)(one).to_pylist() for one in (table, exchanged))
    for row, other in zip(rows, others, strict=True):
        assert row["similarity"] == pytest.approx(other["other_similarity"], abs=1e-5)
        assert row["similarity"] != row["other_similarity"]


def test_masks_are_measured_in_every_step(folder: Path, loaded: tuple[Config, Models]) -> None:
    painter = MaskPainter(*loaded)
    painter.judge = copy.deepcopy(painter.judge)
    torch.nn.init.normal_(painter.judge.judge.mask_head.weight, std=5.0)  # so that it finds some object
    cases = make_cases(load_subjects(folder, 2), EvaluateConfig(prompts_per_subject=1), 0)
    tables = {recipe: painter(mask_table(cases, recipe)) for recipe in RECIPES}
    assert all(table.schema == MASKS for table in tables.values())
    rows = [row for table in tables.values() for row in table.to_pylist()]
    assert {(row["recipe"], tuple(row["cross_grids"]), tuple(row["self_grids"])) for row in rows} == {
        ("cross_all", (16, 8, 4), ()),
        *{("cross", grids, ()) for grids in [default_grids()]},
        ("cross_self_all", default_grids(), (16, 8, 4)),
        ("cross_self", default_grids(), (16,)),
    }
    for recipe in RECIPES:
        own = [row for row in rows if row["recipe"] == recipe and row["subject"] == "mug-1"]
        assert [row["step"] for row in own] == [0, 1, 2]
        last = own[-1]
        assert [row["picture"] is None for row in own] == [True, True, False]
        mask = pixels(last["mask"])[2::4, 2::4] > 0
        picture = torch.from_numpy(pixels(last["picture"])).permute(2, 0, 1)[None].float() / 255
        found = painter.judge.object_mask(picture, (16, 16))[0].numpy()
        assert last["iou"] == pytest.approx((mask & found).sum() / (mask | found).sum(), abs=0.02)


def test_masks_of_rendered_scenes_are_measured_against_the_exact_ones(loaded: tuple[Config, Models]) -> None:
    worker = SceneMaskMeter(*loaded)
    rows = worker(scene_table("cross", 2, seed=5)).to_pylist()
    assert {row["timestep"] for row in rows} == set(TIMESTEPS)
    assert {(row["objects"], row["scene"]) for row in rows} == {(1, 0), (1, 1), (2, 0), (2, 1)}
    scenes = draw_scenes(2, 2, 5)
    spec = scenes.specs[1]
    assert spec.neighbour is not None
    assert spec.caption.text.count(" and ") == 1
    for category, alpha in (
        (spec.subject.instance.category, scenes.mask[1]),
        (spec.neighbour.instance.category, scenes.neighbour_mask[1]),
    ):
        covered = np.array(
            [[alpha[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean() / 255 > 0.5 for x in range(16)] for y in range(16)]
        )
        own = [row for row in rows if (row["objects"], row["scene"], row["word"]) == (2, 1, category)]
        expected = min(32, covered.sum()) / max(32, covered.sum())  # half of a scope of 64 positions
        assert [row["largest_iou"] for row in own] == pytest.approx([expected] * len(TIMESTEPS))
        assert all(0 <= row["iou"] <= row["largest_iou"] + 1e-6 for row in own)


def default_grids() -> tuple[int, ...]:
    return tuple(16 // downscale for downscale in InferenceSettings().mask_cross_downscales)


# Averages and report


def multi_subject_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        for task in TASKS:
            for subject in (0, 1)[: 1 if task.startswith("round") else 2]:
                own, other = rng.random(2) + (task != "text_only")
                rows.append(
                    {
                        "task": task,
                        "pair": f"a{number} + b{number}",
                        "subject": f"{'ab'[subject]}{number}",
                        "phrase": "mug",
                        "prompt": "a mug and a toy",
                        "seed": number,
                        "similarity": float(own),
                        "other_similarity": float(other),
                        "reference": png(1),
                        "picture": png(2),
                        "mask": png(3),
                    }
                )
    return rows


def test_similarity_is_averaged_for_each_task_and_compared_with_text_alone() -> None:
    rows = multi_subject_rows()
    summary = summarize_multi_subject(rows)
    assert summary.pairs == 4
    for task in TASKS:
        own = [row["similarity"] for row in rows if row["task"] == task]
        other = [row["other_similarity"] for row in rows if row["task"] == task]
        pairs = [row["pair"] for row in rows if row["task"] == task]
        assert summary.tasks[task]["similarity"] == bootstrap_interval(own, pairs)
        margins = [one - another for one, another in zip(own, other, strict=True)]
        assert summary.tasks[task]["margin"] == bootstrap_interval(margins, pairs)
    plain = {row["subject"]: row["similarity"] for row in rows if row["task"] == "text_only"}
    gains = [row["similarity"] - plain[row["subject"]] for row in rows if row["task"] == "one_to_many"]
    assert summary.gains["one_to_many"]["similarity"].mean == pytest.approx(sum(gains) / len(gains))
    assert set(summary.gains) == {"many_to_many", "one_to_many"}


def mask_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {
            "recipe": recipe,
            "cross_grids": [16, 8],
            "self_grids": [] if number < 2 else [16],
            "subject": f"mug-{subject}",
            "prompt": "a mug",
            "seed": subject,
            "step": step,
            "timestep": 900 - step,
            "iou": float(rng.random()),
            "largest_iou": 1.0,
            "picture": png(1) if step == 3 else None,
            "mask": png(2) if step == 3 else None,
        }
        for number, recipe in enumerate(RECIPES)
        for subject in range(3)
        for step in range(4)
    ]


def test_masks_are_averaged_until_the_early_stop_and_shown_for_each_step() -> None:
    rows = mask_rows()
    summary = summarize_masks(rows, mask_steps=2)
    for recipe in RECIPES:
        used = [row["iou"] for row in rows if row["recipe"] == recipe and row["step"] < 2]
        assert summary.recipes[recipe]["iou"].mean == pytest.approx(sum(used) / 6)
        assert summary.pictures[recipe] == 3
        third = [row["iou"] for row in rows if row["recipe"] == recipe and row["step"] == 2]
        assert summary.steps[recipe][2].mean == pytest.approx(sum(third) / 3)
        assert len(summary.steps[recipe]) == 4
    flat = Experiments.of([], rows, [], mask_steps=2).flat()
    assert flat == {f"mask_{recipe}/iou": summary.recipes[recipe]["iou"].mean for recipe in RECIPES}


def scene_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    return [
        {
            "recipe": recipe,
            "cross_grids": [8],
            "self_grids": [16],
            "objects": objects,
            "scene": scene,
            "word": word,
            "prompt": "a mug and a car",
            "timestep": timestep,
            "iou": float(rng.random()),
            "largest_iou": 0.5 * objects,
        }
        for recipe in RECIPES
        for objects in (1, 2)
        for scene in range(3)
        for word in ("mug", "car")[:objects]
        for timestep in (100, 900)
    ]


def test_scenes_are_averaged_by_number_of_objects_and_timestep() -> None:
    rows = scene_rows()
    summary = summarize_scene_masks(rows)
    for recipe in RECIPES:
        for group, objects in (("one_object", 1), ("two_objects", 2)):
            own = [row for row in rows if row["recipe"] == recipe and row["objects"] == objects]
            assert summary.recipes[recipe][group].mean == pytest.approx(sum(row["iou"] for row in own) / len(own))
            assert summary.largest[recipe][group] == 0.5 * objects
            assert list(summary.timesteps[recipe][group]) == [900, 100]
            late = [row["iou"] for row in own if row["timestep"] == 100]
            assert summary.timesteps[recipe][group][100].mean == pytest.approx(sum(late) / len(late))
    lines = describe_scene_masks(summary, rows)
    assert [line["number"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["grids"] == "cross-attention 8 x 8; self-attention 16 x 16"


def test_no_metric_of_an_experiment_has_the_name_of_an_arm() -> None:
    flat = Experiments.of(multi_subject_rows(), mask_rows(), scene_rows(), mask_steps=2).flat()
    assert len(flat) == 3 * len(TASKS) + 3 * len(RECIPES)
    assert not {name.split("/")[0] for name in flat} & set(ARMS)


def test_the_report_omits_experiments_without_rows(tmp_path: Path) -> None:
    assert describe_multi_subject(summarize_multi_subject([]), []) is None
    assert describe_masks(summarize_masks([], 12), [], 12) is None
    assert describe_scene_masks(summarize_scene_masks([]), []) == []
    assert write_grids(tmp_path, []) == []


def test_the_report_shows_each_pair_and_each_recipe(tmp_path: Path) -> None:
    rows, masks = multi_subject_rows(), mask_rows()
    multi_subject = describe_multi_subject(summarize_multi_subject(rows), rows)
    assert multi_subject is not None
    assert [case["name"] for case in multi_subject["cases"]] == ["a0 + b0", "a1 + b1", "a2 + b2", "a3 + b3"]
    assert len(multi_subject["cases"][0]["cells"]) == 3 + 6 + 2  # references, tasks, masks
    assert multi_subject["findings"][0].startswith("Many2Many: ")
    described = describe_masks(summarize_masks(masks, 2), masks, 2)
    assert described is not None
    assert [recipe["number"] for recipe in described["recipes"]] == [1, 2, 3, 4]
    assert described["recipes"][0]["grids"] == "cross-attention 16 x 16, 8 x 8; self-attention none"
    first = [row["iou"] for row in masks if row["recipe"] == "cross_all" and row["step"] == 0]
    x, y = described["recipes"][0]["points"].split()[0].split(",")
    assert [float(x), float(y)] == pytest.approx([0, 220 * (1 - sum(first) / 3)], abs=0.06)
    assert [Image.open(path).width for path in write_grids(tmp_path, rows)] == [150 + 4 * 202] * 2
