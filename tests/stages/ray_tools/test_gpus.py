from __future__ import annotations

import pytest

from pipelines.config.loading import load_config
from stages.contract import StageError
from stages.ray_tools.gpus import gpu_needs, judge_gpus

ALL = ("microworld", "ingest", "filter", "base", "train_adapter", "contextualizer", "customize", "evaluate", "register")


@pytest.mark.parametrize(
    ("settings", "stages", "expected"),
    [
        ([], ALL, {}),
        (["compute.use_gpu=true"], ("ingest", "microworld", "register"), {}),
        (["compute.use_gpu=true"], ("evaluate",), {"evaluate": 1}),
        (["compute.use_gpu=true"], ("filter", "cache_latents"), {"filter.scoring": 1, "cache_latents": 1}),
        (["compute.use_gpu=true"], ("train_adapter",), {"train_adapter.trainer": 2}),
        (["compute.use_gpu=true", "compute.min_workers=1"], ("base",), {"base": 1}),
        (["compute.use_gpu=true", "compute.workers=4"], ("train_adapter", "contextualizer"),
         {"train_adapter.trainer": 4, "contextualizer.trainer": 1}),
        (["compute.use_gpu=true", "evaluate.use_gpu=false"], ("evaluate", "customize"), {"customize.trainer": 1}),
        (["train_adapter.trainer.use_gpu=true"], ALL, {"train_adapter.trainer": 2}),
    ],
)  # fmt: skip
def test_what_stages_ask_for(settings: list[str], stages: tuple[str, ...], expected: dict[str, int]) -> None:
    assert {need.section: need.count for need in gpu_needs(load_config("micro", settings), stages)} == expected


@pytest.mark.parametrize(
    ("available", "later", "may_grow", "settings", "words"),
    [
        (0, 0, False, [], ["compute.use_gpu is true", "the cluster", "no GPU", "compute.use_gpu=false"]),
        (0, 0, True, [], ["compute.use_gpu is true", "no GPU"]),
        (
            *(0, 0, True),
            ["compute.use_gpu=false", "train_adapter.trainer.use_gpu=true"],
            ["train_adapter.trainer.use_gpu is true", "no GPU"],
        ),
        (1, 0, False, [], ["train_adapter.trainer.workers=4", "4 GPUs", "has 1", "compute.workers to at most 1"]),
        (3, 0, False, ["compute.min_workers=4"], ["needs 4 GPUs", "has 3"]),
    ],
)
def test_a_cluster_that_cannot_run_a_stage_is_refused(
    available: int, later: int, may_grow: bool, settings: list[str], words: list[str]
) -> None:
    needs = gpu_needs(load_config("micro", ["compute.use_gpu=true", "compute.workers=4", *settings]), ["train_adapter"])
    with pytest.raises(StageError) as caught:
        judge_gpus(needs, "the cluster", available=available, later=later, may_grow=may_grow)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("available", "later", "may_grow", "settings", "warnings"),
    [
        (4, 0, False, [], 0),
        (8, 0, True, [], 0),
        (1, 0, False, ["compute.min_workers=1"], 0),
        (0, 8, True, [], 0),  # its autoscaler starts nodes
        (1, 0, True, [], 1),
        (0, 1, True, [], 1),
    ],
)
def test_a_cluster_that_can_is_accepted(
    available: int, later: int, may_grow: bool, settings: list[str], warnings: int
) -> None:
    needs = gpu_needs(load_config("micro", ["compute.use_gpu=true", "compute.workers=4", *settings]), ["train_adapter"])
    found = judge_gpus(needs, "the cluster", available=available, later=later, may_grow=may_grow)
    assert len(found) == warnings
    assert all("train_adapter.trainer.workers" in warning and "compute.min_workers" in warning for warning in found)


def test_a_run_without_gpus_needs_none() -> None:
    assert judge_gpus([], "the cluster", available=0, later=0, may_grow=False) == []
