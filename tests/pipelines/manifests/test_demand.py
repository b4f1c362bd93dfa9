"""What a configuration asks a cluster for."""

from __future__ import annotations

import pytest

from pipelines.config.loading import load_config
from pipelines.manifests.cluster import Machines, ray_cluster
from pipelines.manifests.demand import Demand, endpoint_demand, ingest_demand, pipeline_demand

PIPELINE: dict[str, tuple[str, list[str], int, int]] = {
    "micro": ("micro", [], 2, 0),
    "sd15": ("sd15", [], 64, 8),
    "fewer downloads at once": ("sd15", ["ingest.processes=1"], 1, 8),
    "more training workers": ("sd15", ["train_adapter.trainer.workers=16"], 64, 16),
    "the largest stage counts": ("sd15", ["contextualizer.trainer.workers=32", "customize.subjects=[a]"], 64, 32),
    "concepts are learned side by side": (
        "sd15",
        ["customize.subjects=[a, b, c, d, e, f]", "customize.words=[a, b, c, d, e, f]", "customize.trainer.workers=2"],
        64,
        12,
    ),
    "shares of GPUs are rounded up": (
        "sd15",
        [
            "train_adapter.trainer.use_gpu=false",
            "contextualizer.trainer.use_gpu=false",
            "customize.trainer.use_gpu=false",
            "evaluate.use_gpu=false",
            "filter.scoring.actors=9",
        ],
        64,
        3,
    ),
    "a stage that is not run": ("sd15", ["cache_latents.actors=100"], 64, 8),
    "the same stage, run": ("sd15", ["cache_latents.actors=100", "cache_latents.enabled=true"], 64, 100),
    "evaluation": ("sd15", ["evaluate.workers=24"], 64, 24),
}


@pytest.mark.parametrize("case", PIPELINE)
def test_the_pipeline_asks_for_its_largest_stage(case: str) -> None:
    profile, settings, cpus, gpus = PIPELINE[case]
    found = pipeline_demand(load_config(profile, settings))
    assert (found.max_cpus, found.max_gpus) == (cpus, gpus)
    assert found.min_gpus == 0  # no GPU node is held while no stage needs one


def test_ingest_alone_asks_for_no_gpu() -> None:
    assert ingest_demand(load_config("sd15")) == Demand(min_cpus=1, max_cpus=64, min_gpus=0, max_gpus=0)


@pytest.mark.parametrize(
    ("settings", "demand"),
    [
        ([], Demand(0, 0, 1, 1)),
        (["serve.replicas=2", "serve.max_replicas=6"], Demand(0, 0, 2, 6)),
        (["serve.use_gpu=false"], Demand(1, 2, 0, 0)),
        (["serve.use_gpu=false", "serve.replicas=2", "serve.max_replicas=6"], Demand(2, 12, 0, 0)),
    ],
)
def test_the_endpoint_asks_for_its_replicas(settings: list[str], demand: Demand) -> None:
    assert endpoint_demand(load_config("sd15", settings)) == demand


@pytest.mark.parametrize(
    ("machines", "replicas", "gpus"),
    [
        (Machines(gpus=8), 1, "8"),
        (Machines(gpus=4), 2, "4"),
        (Machines(gpus=3), 3, "3"),
        (Machines(gpus=1), 8, "1"),
        (Machines(gpus=16), 1, "8"),
    ],
)
def test_workers_fit_the_nodes(machines: Machines, replicas: int, gpus: str) -> None:
    cluster = ray_cluster("realword:1", pipeline_demand(load_config("sd15")), machines)
    (group,) = (group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu")
    (container,) = group["template"]["spec"]["containers"]
    assert (group["maxReplicas"], container["resources"]["limits"]["nvidia.com/gpu"]) == (replicas, gpus)
