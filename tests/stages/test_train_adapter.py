"""The stage on a tiny plan and a random backbone."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import make_context
from PIL import Image
from random_backbone import write_random_backbone

from model.adapter import RealCustomPlusAdapter
from model.realcustom_adapter import RealCustomAdapter
from stages.datasets import PictureStore, write_dataset, write_part
from stages.schemas import FRAMES, PLAN, SAMPLES
from stages.stage import StageError
from stages.train_adapter import PlanPictures, PlanReader, adapter_task, plot_training, run

STEPS, BATCH = 6, 4


def _picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _rows(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    defaults = {pa.string(): "x", pa.int32(): 64, pa.binary(): b""}
    filled = [{field.name: defaults.get(field.type) for field in schema} | row for row in rows]
    return pa.Table.from_pylist(filled, schema=schema)


def _plan_row(step: int, slot: int) -> dict[str, Any]:
    multiview = (step + slot) % 2 == 0
    return {
        "step": step,
        "slot": slot,
        "source": "multiview" if multiview else "image_text",
        "reference_id": f"frame-{slot}" if multiview else f"sample-{slot}",
        "target_id": f"frame-{slot + 1}" if multiview else f"sample-{slot}",
        "caption": "a photo of a mug",
        "crop_ratio": 1.0 + 0.3 * slot,
        **{name: 0.5 for name in ("crop_x", "crop_y", "target_crop_x", "target_crop_y")},
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    samples = [{"sample_id": f"sample-{n}", "picture": _picture(n)} for n in range(BATCH)]
    frames = [
        {"frame_id": f"frame-{n}", "picture": _picture(100 + n), "rotation": [1.0, 0, 0, 0], "translation": [0.0, 0, 0]}
        for n in range(BATCH + 1)
    ]
    plan = [_plan_row(step, slot) for step in range(STEPS) for slot in range(BATCH)]
    write_dataset(folder / "filter" / "samples", _rows(SAMPLES, samples), SAMPLES)
    write_dataset(folder / "multiview" / "frames", _rows(FRAMES, frames), FRAMES)
    write_dataset(folder / "curriculum" / "plan", _rows(PLAN, plan), PLAN, order=("step", "slot"))
    write_random_backbone(folder / "base" / "backbone")
    return {name: folder / name for name in ("filter", "multiview", "curriculum", "base")}


def test_plan_reader_gives_the_rows_of_a_step(inputs: Mapping[str, Path]) -> None:
    plan = PlanReader(inputs["curriculum"] / "plan")
    assert plan.steps == STEPS
    assert plan.batch_sizes() == {BATCH}
    for step in range(STEPS):
        expected = [_plan_row(step, slot) for slot in range(BATCH)]
        assert [row.target_id for row in plan(step)] == [row["target_id"] for row in expected]
        assert [row.slot for row in plan(step)] == list(range(BATCH))


def test_plan_reader_starts_anywhere_in_a_plan_of_several_parts(tmp_path: Path) -> None:
    for number, steps in enumerate([range(0, 4), range(4, 8), range(8, 9)]):
        rows = [_plan_row(step, slot) for step in steps for slot in range(BATCH)]
        write_part(tmp_path / "plan", number, _rows(PLAN, rows), PLAN)
    for step in (8, 3, 4, 7, 0):
        plan = pickle.loads(pickle.dumps(PlanReader(tmp_path / "plan")))
        assert [row.target_id for row in plan(step)] == [_plan_row(step, slot)["target_id"] for slot in range(BATCH)]
        assert [row.slot for row in plan(8 - step)] == list(range(BATCH))
        assert plan.steps == 9
    assert plan.batch_sizes() == {BATCH}
    rows = [_plan_row(9, slot) | {"reference_id": "a", "target_id": "a"} for slot in range(BATCH)]
    write_part(tmp_path / "own", 0, _rows(PLAN, rows), PLAN)
    assert PlanReader(tmp_path / "own").references_are_targets
    assert not PlanReader(tmp_path / "plan").references_are_targets


def test_an_unknown_picture_of_the_plan_is_named(inputs: Mapping[str, Path]) -> None:
    samples = PictureStore(inputs["filter"] / "samples", "sample_id")
    frames = PictureStore(inputs["multiview"] / "frames", "frame_id")
    pictures = PlanPictures(samples, frames)
    assert pictures("sample-1") == _picture(1)
    assert pictures("frame-2") == _picture(102)
    with pytest.raises(ValueError, match=r"picture sample-99 of the plan is neither in .*/samples nor in .*/frames"):
        pictures("sample-99")


def test_a_batch_that_cannot_be_shared_out_is_refused(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    context = make_context(tmp_path, inputs, train_adapter={"trainer": {"workers": 3}})
    with pytest.raises(StageError, match=r"^4 examples a step cannot be shared out among 3 workers"):
        run(context)


def test_the_configuration_chooses_the_projector(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    plan = PlanReader(inputs["curriculum"] / "plan")
    naive = make_context(tmp_path, inputs, train_adapter={"cross_layer": None, "cross_scale": None})
    adapters = [adapter_task(context, plan).module().adapter for context in (make_context(tmp_path, inputs), naive)]
    names = [[name.split(".") for name in adapter.state_dict()] for adapter in adapters]
    modules = [{parts[1] for parts in of_adapter if parts[0] == "projector"} for of_adapter in names]
    assert modules == [
        {"shallow_attention", "shallow_mlp", "high_attention", "high_mlp", "deep_mlp"},
        {"deep_mlp"},
    ]


def test_the_configuration_chooses_the_method(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    context = make_context(tmp_path, inputs, train_adapter={"method": "realcustom", "score_fusion": "visual"})
    adapter = adapter_task(context, PlanReader(inputs["curriculum"] / "plan")).module().adapter
    assert isinstance(adapter, RealCustomAdapter)
    assert adapter.config["score_fusion"] == "visual"


def test_the_configuration_chooses_the_weights_of_the_loss(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    plan = PlanReader(inputs["curriculum"] / "plan")
    for gamma in (None, 5.0):
        context = make_context(tmp_path, inputs, train_adapter={"min_snr_gamma": gamma})
        assert adapter_task(context, plan).module().min_snr_gamma == gamma
    with pytest.raises(StageError, match=r"^train_adapter.min_snr_gamma is 0: set it above 0, or to null for none"):
        run(make_context(tmp_path, inputs, train_adapter={"min_snr_gamma": 0}))


def test_the_configuration_chooses_the_sample_pictures(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    plan = PlanReader(inputs["curriculum"] / "plan")
    chosen = {"sample_every": 50, "sample_prompts": ["a {word} in the snow"]}
    task = adapter_task(make_context(tmp_path, inputs, train_adapter=chosen), plan)
    assert (task.sample_every, [sample.prompt for sample in task.samples]) == (50, ["a x in the snow"])
    without = adapter_task(make_context(tmp_path, inputs, train_adapter={"sample_every": None}), plan)
    assert (without.sample_every, without.samples) == (None, ())
    for settings, match in (
        ({"sample_every": 0}, r"^train_adapter\.sample_every is 0: set it above 0"),
        ({"trainer": {"zero_stage": 3}}, r"^sample pictures need an adapter that is whole .* sample_every=null"),
    ):
        with pytest.raises(StageError, match=match):
            run(make_context(tmp_path, inputs, train_adapter=settings))


def test_realcustom_refuses_a_plan_with_pairs_of_views(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    context = make_context(tmp_path, inputs, train_adapter={"method": "realcustom"})
    with pytest.raises(StageError, match=r"this plan has pairs of views: set curriculum\.multiview_probability=0"):
        run(context)


@pytest.mark.parametrize("measured", [["loss"], ["loss", "loss/image_text", "loss/multiview", "loss/t_0_250"]])
def test_related_curves_share_a_panel(measured: list[str], tmp_path: Path) -> None:
    plot_training({name: [(step, 1 / step) for step in range(1, 200)] for name in measured}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert (31, 119, 180) in colours  # of the first line in a panel
    assert ((255, 127, 14) in colours) == ("loss/multiview" in measured)  # of the second


@pytest.mark.slow
def test_the_stage_writes_an_adapter(ray_cluster: str, inputs: Mapping[str, Path], tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    result = run(make_context(tmp_path, inputs, events))
    adapter = RealCustomPlusAdapter.from_pretrained(tmp_path / "output" / "adapter")
    values = [linear.weight for linear in adapter.to_v_vision.values()]
    assert all(value.abs().max() > 0 for value in values), "the visual values have not left zero"
    assert {"loss", "gain", "samples_per_second"} <= result.metrics.keys()
    assert {"loss/image_text", "loss/multiview", "multiview_share", "crop_ratio"} <= result.metrics.keys()
    assert json.loads((tmp_path / "output/adapter/config.json").read_text())["token_width"] == 128
    assert {"event": "picture", "key": "curves", "path": str(tmp_path / "output/curves.png")} in events
    assert [e["step"] for e in events if e.get("key") == "adapter/loss"] == list(range(1, STEPS + 1))
