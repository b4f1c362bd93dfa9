from __future__ import annotations

import pytest

from pipelines.config.loading import load_config
from stages.contract import StageError
from stages.ray_tools.gpus import gpu_needs, gpus_of_machine, judge_gpus

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
        (0, 0, False, [], ["compute.use_gpu is true", "the cluster", "no GPU", "--set compute.use_gpu=false"]),
        (0, 0, True, [], ["compute.use_gpu is true", "no GPU"]),
        (
            *(0, 0, True),
            ["compute.use_gpu=false", "train_adapter.trainer.use_gpu=true"],
            ["train_adapter.trainer.use_gpu is true", "no GPU", "--set train_adapter.trainer.use_gpu=false"],
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


#: Profile, settings, GPUs, and the whole sentence.
ALL_AT_ONCE = [
    (
        *("sd15", ["compute.workers=8"], 1),
        "train_adapter.trainer.workers=8 needs 8 GPUs and this machine has 1: set compute.workers to at most 1 (all "
        "stages follow it), or use a larger cluster.",
    ),
    (
        *("sd15", ["compute.workers=8", "contextualizer.trainer.workers=4"], 2),
        "train_adapter.trainer.workers=8 needs 8 GPUs, contextualizer.trainer.workers=4 needs 4 GPUs and this machine "
        "has 2: set compute.workers and contextualizer.trainer.workers to at most 2 (all stages follow it), or use a "
        "larger cluster.",
    ),
    (
        *("sd15", ["compute.workers=2", "customize.trainer.workers=4"], 2),
        "customize.trainer.workers=4 needs 4 GPUs and this machine has 2: set customize.trainer.workers to at most 2, "
        "or use a larger cluster.",
    ),
    (
        *("sd15", [], 0),
        "compute.use_gpu is true and this machine has no GPU: compute on CPUs with --set compute.use_gpu=false, or use "
        "a cluster with GPUs.",
    ),
    (
        *("micro", ["train_adapter.trainer.use_gpu=true", "evaluate.use_gpu=true"], 0),
        "train_adapter.trainer.use_gpu, evaluate.use_gpu are true and this machine has no GPU: compute on CPUs with "
        "--set train_adapter.trainer.use_gpu=false --set evaluate.use_gpu=false, or use a cluster with GPUs.",
    ),
]


@pytest.mark.parametrize(("profile", "settings", "available", "sentence"), ALL_AT_ONCE)
def test_all_that_lacks_gpus_is_named_at_once(profile: str, settings: list[str], available: int, sentence: str) -> None:
    needs = gpu_needs(load_config(profile, settings), [name for name in ALL if name != "base"])
    with pytest.raises(StageError) as caught:
        judge_gpus(needs, "this machine", available=available, later=0, may_grow=False)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("visible", "most"), [(None, 1000), ("", 0), ("0", 1), ("0,1", 2), ("-1", 1)])
def test_no_more_gpus_are_counted_than_this_process_sees(
    visible: str | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert 0 <= gpus_of_machine() <= most


def test_a_run_without_gpus_needs_none() -> None:
    assert judge_gpus([], "the cluster", available=0, later=0, may_grow=False) == []
