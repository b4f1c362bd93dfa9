"""The stage on a tiny plan and a random backbone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.methods.registry import load_adapter
from model.training.adapter_task import AdapterTask
from stages.contract import StageError
from stages.data.datasets import write_dataset
from stages.data.plan import PlanReader
from stages.data.schemas import SAMPLES
from stages.train_adapter.stage import adapter_task, plot_training, run
from stages.training.config import TrainerConfig
from stages.training.trainer import fit
from tests.support.contexts import make_context, on_disk
from tests.support.random_backbone import write_random_backbone
from tests.support.tiny_plan import BATCH, STEPS, encoded_picture, filled, write_tiny_plan

#: What RealCustom learns from.
OWN_REFERENCES = {"multiview_probability": 0.0, "max_crop_ratio": 1.0}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_plan(folder)
    write_random_backbone(folder / "base" / "backbone")
    return {name: folder / name for name in ("filter", "multiview", "curriculum", "base")}


def test_a_batch_that_cannot_be_divided_is_refused(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    context = make_context(tmp_path, inputs, train_adapter={"trainer": {"workers": 8}})  # fits the configured batch
    with pytest.raises(StageError, match=r"4 examples .*\.workers=8: set curriculum\.batch_size"):
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
    changes = {"method": "realcustom", "score_fusion": "visual"}
    context = make_context(tmp_path, inputs, train_adapter=changes, curriculum=OWN_REFERENCES)
    adapter = adapter_task(context, PlanReader(inputs["curriculum"] / "plan")).module().adapter
    assert isinstance(adapter, RealCustomAdapter)
    assert adapter.config["score_fusion"] == "visual"


def test_the_configuration_chooses_the_weights_of_the_loss(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    plan = PlanReader(inputs["curriculum"] / "plan")
    for gamma in (None, 5.0):
        context = make_context(tmp_path, inputs, train_adapter={"min_snr_gamma": gamma})
        assert adapter_task(context, plan).module().min_snr_gamma == gamma


def test_the_configuration_chooses_the_previews(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    plan = PlanReader(inputs["curriculum"] / "plan")
    chosen = {"sample_every": 50, "sample_prompts": ["a {word} in the snow"]}
    inference = {"steps": 7, "mask_steps": 3, "mask_scope": 0.5}
    task = adapter_task(make_context(tmp_path, inputs, train_adapter=chosen, inference=inference), plan)
    assert (task.preview_settings.steps, task.preview_settings.mask_scope) == (7, 0.5)
    assert (task.sample_every, [sample.prompt for sample in task.preview_subjects]) == (50, ["a x in the snow"])
    without = adapter_task(make_context(tmp_path, inputs, train_adapter={"sample_every": None}), plan)
    assert (without.sample_every, without.preview_subjects) == (None, ())


def test_realcustom_refuses_a_plan_with_pairs_of_views(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    context = make_context(tmp_path, inputs, train_adapter={"method": "realcustom"}, curriculum=OWN_REFERENCES)
    with pytest.raises(StageError, match=r"this plan has pairs of views: set curriculum\.multiview_probability=0"):
        run(context)


@pytest.mark.parametrize("measured", [["loss"], ["loss", "loss/image_text", "loss/multiview", "loss/t_0_250"]])
def test_related_curves_share_a_panel(measured: list[str], tmp_path: Path) -> None:
    plot_training({name: [(step, 1 / step) for step in range(1, 200)] for name in measured}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == (31, 119, 180)).all(-1).any()  # of the first line in a panel
    assert (pixels == (255, 127, 14)).all(-1).any() == ("loss/multiview" in measured)  # of the second


@pytest.mark.slow
def test_the_stage_writes_an_adapter(ray_cluster: str, inputs: Mapping[str, Path], tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    result = run(make_context(tmp_path, inputs, events, train_adapter={"sample_every": 3}))
    adapter = RealCustomPlusAdapter.from_pretrained(tmp_path / "output" / "adapter")
    values = [linear.weight for linear in adapter.to_v_vision.values()]
    assert all(value.abs().max() > 0 for value in values), "the visual values have not left zero"
    assert {"loss", "gain", "samples_per_second"} <= result.metrics.keys()
    assert {"loss/image_text", "loss/multiview", "multiview_share", "crop_ratio"} <= result.metrics.keys()
    assert json.loads((tmp_path / "output/adapter/config.json").read_text())["token_width"] == 128
    assert {"event": "picture", "key": "curves", "path": str(tmp_path / "output/curves.png")} in events
    assert [e["step"] for e in events if e.get("key") == "adapter/loss"] == list(range(1, STEPS + 1))
    assert {"event": "picture", "key": "samples", "path": str(tmp_path / "output/samples.png")} in events
    previews = sorted((tmp_path / "scratch/train/adapter-samples").iterdir())
    assert [preview.name for preview in previews] == ["0000003.png", "0000006.png"]
    reported = [(e["step"], e["path"]) for e in events if e["event"] == "sample"]
    assert reported == [(3, str(previews[0].resolve())), (6, str(previews[1].resolve()))]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["realcustom++", pytest.param("realcustom", marks=pytest.mark.nightly)])
def test_steps_on_one_worker_are_bare_pytorch_steps(
    method: str, ray_cluster: str, inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    """In the first step the visual values move, in the next ones everything, and every gradient is clipped.

    AdamW divides by a gradient's size. Where one nearly vanishes its rounding shows: two elements in ten thousand may
    then differ by some 1e-6, the others by some 1e-9.
    """
    adamw = {"optimizer": "adamw", "learning_rate": 1.5e-3}
    steps, settings = 3, {"workers": 1, "warmup_steps": 1, "gradient_clip": 0.01, **adamw}
    changes = {"method": method, "trainer": settings, "sample_every": None}
    context = make_context(tmp_path, inputs, train_adapter=changes, curriculum=OWN_REFERENCES, run={"cpus": 1})
    config, seed = context.config.train_adapter.trainer, 5
    task = adapter_task(context, PlanReader(inputs["curriculum"] / "plan"))
    weights, curves = fit(
        task,
        steps=steps,
        config=config,
        context=context,
        name="adapter",
        seed=seed,
        section="a.trainer",
        batch_size=1,
        batch_setting="a.b",
    )
    found = load_adapter(on_disk(weights)).state_dict()
    with one_thread():  # as the worker: sums in the same order
        expected, losses, norms = bare_steps(task, config, steps, seed)
    assert min(norms) > config.gradient_clip
    assert [value for _, value in curves["loss"]] == pytest.approx(losses, abs=1e-6)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert root_mean_square(found[name] - tensor) < 2e-7, name


def root_mean_square(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


@pytest.mark.nightly
@pytest.mark.slow
def test_a_broken_picture_of_the_plan_is_named(ray_cluster: str, inputs: Mapping[str, Path], tmp_path: Path) -> None:
    samples = [{"sample_id": f"sample-{n}", "picture": encoded_picture(n) if n != 3 else b"?"} for n in range(BATCH)]
    write_dataset(tmp_path / "filter" / "samples", filled(SAMPLES, samples), SAMPLES)
    settings = {"sample_every": None, "trainer": {"workers": 1, "max_failures": 0}}
    context = make_context(tmp_path, {**inputs, "filter": tmp_path / "filter"}, train_adapter=settings)
    with pytest.raises(StageError, match=r"step 0: picture sample-3 of the plan: the picture is not a picture"):
        run(context)


def bare_steps(
    task: AdapterTask, config: TrainerConfig, steps: int, seed: int
) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """The adapter's weights after some steps, their losses, and the gradients' norms."""
    torch.manual_seed(seed)
    module = task.module()
    optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, config.beta2), weight_decay=config.weight_decay)
    losses, norms = [], []
    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = config.learning_rate * (
            config.final_share + (1 - config.final_share) * cosine
        )
        optimizer.zero_grad()
        loss = module(task.batch(step, 0, 1))["loss"]
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clip)))
        optimizer.step()
        losses.append(loss.item())
    return module.adapter.state_dict(), losses, norms


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
