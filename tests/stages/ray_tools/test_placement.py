from __future__ import annotations

from typing import Any

import pytest

from stages.ray_tools.placement import POOL, cpu_nodes, cpu_selector

AWAY_FROM_GPUS = {POOL: "!gpu"}


def node(pool: str | None, cpus: float = 4, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus} if cpus else {}, "Labels": {POOL: pool} if pool else {}}


@pytest.mark.parametrize(
    ("nodes", "selector", "counted"),
    [
        ([node(None)], None, 1),  # a local Ray
        ([node(None), node(None)], None, 2),
        ([node("cpu"), node("gpu")], AWAY_FROM_GPUS, 1),
        ([node(None), node("gpu")], AWAY_FROM_GPUS, 1),
        ([node(None, cpus=0), node("gpu")], None, 2),  # the head does no work: the only CPUs are the trainers'
        ([node("gpu"), node("gpu")], None, 2),
        ([node("cpu")], AWAY_FROM_GPUS, 1),  # an autoscaler may add nodes with GPUs
        ([node("cpu", alive=False), node("gpu")], None, 1),
        ([node("cpu", cpus=0), node("gpu")], None, 2),
        ([node("cpu"), node("gpu", alive=False)], AWAY_FROM_GPUS, 1),
        ([node("cpu"), node("storage")], AWAY_FROM_GPUS, 2),
        ([], None, 0),
    ],
)
def test_work_without_gpus_leaves_the_nodes_with_gpus_alone_if_it_can(
    nodes: list[dict[str, Any]], selector: dict[str, str] | None, counted: int
) -> None:
    assert cpu_selector(nodes) == selector
    assert len(cpu_nodes(nodes)) == counted
