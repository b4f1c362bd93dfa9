"""On which nodes of a cluster work runs: what needs no GPU leaves the nodes with GPUs to what does.

The nodes have Ray's label `realword/pool`, `cpu` or `gpu` (`ray start --labels`). On a cluster without such labels
everything runs anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

POOL = "realword/pool"

#: A label selector of Ray: the value of a label, or "!" and a value that a node must not have.
Selector = dict[str, str]


def node_selector(gpus: float = 0) -> Selector | None:
    """The selector for work that needs this many GPUs, on the cluster of this process; None: it runs anywhere.

    Work with GPUs needs none: Ray finds them.
    """
    import ray

    return None if gpus else cpu_selector(ray.nodes())


def cpu_selector(nodes: Sequence[Mapping[str, Any]]) -> Selector | None:
    """The selector for work without GPUs, from Ray's list of nodes.

    None when no living node has a pool, and when all nodes with CPUs are in the pool with GPUs: it would wait for ever.
    """
    pools = [node["Labels"].get(POOL) for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    if not any(pools) or set(pools) == {"gpu"}:
        return None
    return {POOL: "!gpu"}


def cpu_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The living nodes that do work without GPUs."""
    alive = [node for node in nodes if node["Alive"]]
    return [node for node in alive if node["Labels"].get(POOL) != "gpu"] if cpu_selector(nodes) else alive
