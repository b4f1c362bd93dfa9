"""Runs in an object store on a cluster that loses nodes: their datasets are those of a run that nothing disturbed.

The nodes share no disk. One cluster serves all tests: each puts back what it took away.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.cluster import BUCKET, Cluster, NodeOptions, needs_nodes, ray_cluster
from tests.support.cluster_runs import (
    SETTINGS,
    Bucket,
    ClusterRun,
    command,
    node_at_work,
    start,
    wait_until,
    workers_of,
)
from tests.support.hosts import Host

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000), needs_nodes]

DATA_STAGES = ("ingest", "filter", "cache_latents")
NODES = 3
#: Ray's monitor kills the workers of such a node one after the other.
SHORT_OF_MEMORY = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
INTERVAL = int(SETTINGS["train_adapter.trainer.checkpoint_every"])


class Nodes:
    """The nodes that do the work, a CPU each."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.alive: list[Host] = []
        self._number = 0

    def add(self, count: int = 1) -> list[Host]:
        """Add nodes to the cluster."""
        names = [f"node{number}" for number in range(self._number, self._number + count)]
        self._number += count
        new = self.cluster.add_nodes(*(NodeOptions(name=name, cpus=1) for name in names))
        self.alive += new
        return new

    def replace(self, node: Host) -> None:
        """Kill a node; another one joins."""
        node.kill()
        self.alive.remove(node)
        self.add()

    def cut_off(self, node: Host) -> None:
        """Cut a node off until the cluster has given it up; then it comes back."""
        node.disconnect()
        wait_until(lambda: not self._is_known(node), "the cluster has not noticed that a node is cut off")
        node.reconnect()
        self.cluster.rejoin(node)

    def _is_known(self, node: Host) -> bool:
        return any(found["node_ip"] == node.address and found["state"] == "ALIVE" for found in self.cluster.nodes())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(s3=True) as made:
        made.start_head(NodeOptions(name="head", cpus=0))
        yield made


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> Nodes:
    made = Nodes(cluster)
    made.add(NODES)
    return made


@pytest.fixture(scope="module")
def bucket(cluster: Cluster) -> Bucket:
    return Bucket(cluster)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, nodes: Nodes, bucket: Bucket) -> dict[str, dict[str, Any]]:
    """The manifests of a run that nothing disturbs. The disturbed runs do some of its stages again."""
    start(head_of(cluster), "--stage=train_adapter").finish(1200)
    return bucket.manifests()


def head_of(cluster: Cluster) -> Host:
    assert cluster.head is not None
    return cluster.head


def test_of_two_runs_at_once_one_goes_on_without_a_node(cluster: Cluster, nodes: Nodes, bucket: Bucket) -> None:
    """The other one says who holds the folder. Each row of the metadata has an outcome, and only one."""
    small = ("--stage=ingest", f"--set=run.folder=s3://{BUCKET}/small", "--set=microworld.pictures=120")
    runs = [start(head_of(cluster), *small, "--set=ingest.samples_per_shard=10") for _ in range(2)]
    nodes.replace(node_at_work(nodes.alive, "fetch_shard"))
    refused, done = sorted((run.command.wait(300) for run in runs), key=lambda ended: -ended.returncode)

    assert (refused.returncode, done.returncode) == (1, 0), refused.stdout + done.stdout
    holder = r"error: Another run \(process \d+ on head\) is at work in s3://realword/small; "
    assert re.match(holder, refused.stdout.splitlines()[-1])
    samples, others = (
        [name for dataset in datasets for name in bucket.ids("small/stages/ingest", dataset)]
        for datasets in (("samples",), ("rejected", "failed"))
    )
    assert len(set(samples)) == len(samples)
    assert len(samples) + len(others) == 120


@pytest.mark.nightly
def test_data_nodes_are_killed(
    cluster: Cluster, nodes: Nodes, bucket: Bucket, undisturbed: dict[str, dict[str, Any]]
) -> None:
    """In each stage a node that is at work is killed."""
    bucket.remove_outputs(*DATA_STAGES)
    run = start(head_of(cluster), "--stage=cache_latents")
    for task in ("fetch_shard", "inspect", "Encoder"):
        nodes.replace(node_at_work(nodes.alive, task))
    run.finish()

    bucket.assert_outputs(undisturbed, DATA_STAGES)


@pytest.mark.nightly
def test_nodes_are_cut_off_and_come_back(
    cluster: Cluster, nodes: Nodes, bucket: Bucket, undisturbed: dict[str, dict[str, Any]]
) -> None:
    """For as long as the cluster takes to give a node up, and for a moment."""
    bucket.remove_outputs(*DATA_STAGES)
    run = start(head_of(cluster), "--stage=cache_latents")
    nodes.cut_off(node_at_work(nodes.alive, "fetch_shard"))
    node = node_at_work(nodes.alive, "inspect")
    node.disconnect()
    time.sleep(4)
    node.reconnect()
    nodes.cut_off(node_at_work(nodes.alive, "Encoder"))
    run.finish()

    bucket.assert_outputs(undisturbed, DATA_STAGES)


@pytest.mark.nightly
def test_workers_are_killed_for_memory_and_a_node_joins(
    cluster: Cluster, nodes: Nodes, bucket: Bucket, undisturbed: dict[str, dict[str, Any]]
) -> None:
    """By the kernel, and by Ray's monitor on a node that is always short of it. A node that joins gets work."""
    bucket.remove_outputs(*DATA_STAGES)
    run = start(head_of(cluster), "--stage=cache_latents", "--set=ingest.processes=5")
    kill_worker(nodes.alive, "fetch_shard")
    (new,) = nodes.add()
    node_at_work([new], "fetch_shard")
    pressed = cluster.add_node(NodeOptions(name="pressed", cpus=1, environment=SHORT_OF_MEMORY))
    wait_until(lambda: "failed due to oom" in run.log("ingest"), "Ray's monitor has killed no worker")
    pressed.kill()
    for task in ("inspect", "Encoder"):
        kill_worker(nodes.alive, task)
    run.finish()

    bucket.assert_outputs(undisturbed, DATA_STAGES)


def kill_worker(nodes: list[Host], task: str) -> None:
    node = node_at_work(nodes, task)
    node.run("kill", "-KILL", *map(str, workers_of(node, task)))


@pytest.mark.nightly
def test_training_nodes_are_killed_and_cut_off(
    cluster: Cluster, nodes: Nodes, bucket: Bucket, undisturbed: dict[str, dict[str, Any]]
) -> None:
    """The training goes on from its last checkpoint, with the same result."""
    bucket.remove_outputs("train_adapter")
    run = start(head_of(cluster), "--stage=train_adapter")
    with recorded_steps(bucket) as steps:
        run.wait_for("train_adapter", INTERVAL + 1)
        nodes.replace(node_at_work(nodes.alive, "RayTrainWorker"))
        run.wait_for("train_adapter", 3 * INTERVAL + 1)
        nodes.cut_off(node_at_work(nodes.alive, "RayTrainWorker"))
        run.finish(900)

    repeated = [step for step in set(steps) if steps.count(step) > 1]
    assert set(steps) == set(range(1, SETTINGS["curriculum.steps"] + 1))
    assert max(steps.count(step) for step in steps) <= 3
    assert len(repeated) <= 2 * INTERVAL
    assert weights(bucket.manifests()) == weights(undisturbed)


def weights(manifests: dict[str, dict[str, Any]]) -> dict[str, object]:
    files = manifests["train_adapter"]["files"]
    return {name: record for name, record in files.items() if name.startswith("adapter/")}


@contextmanager
def recorded_steps(bucket: Bucket) -> Iterator[list[int]]:
    """The steps that the training has recorded, as they are when the block ends."""
    steps: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.3):
            steps[:] = bucket.steps() or steps  # the commit removes them

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield steps
    finally:
        ended.set()
        watcher.join()


@pytest.mark.nightly
def test_the_head_is_killed_and_another_one_goes_on(
    cluster: Cluster, nodes: Nodes, bucket: Bucket, undisturbed: dict[str, dict[str, Any]]
) -> None:
    """A job that is submitted to another cluster waits until the lock of the dead run is free, and goes on."""
    bucket.remove_outputs("cache_latents", "train_adapter")
    laptop = cluster.add_laptop()
    first = submit(laptop, cluster)
    first.wait_for("train_adapter", INTERVAL + 1)
    head_of(cluster).kill()
    cluster.start_head(NodeOptions(name="head2", cpus=0))
    nodes.add(2)
    second = submit(laptop, cluster).finish(900)
    lost = first.command.wait(300)

    assert lost.returncode == 1
    assert lost.stdout.splitlines()[-1].startswith("error: ")
    assert "has locked s3://" in second
    assert "train_adapter  starts (interrupted; goes on from there)" in second
    assert "] cache_latents" not in second
    bucket.assert_outputs(undisturbed, ("cache_latents",))
    assert weights(bucket.manifests()) == weights(undisturbed)


def submit(laptop: Host, cluster: Cluster) -> ClusterRun:
    """Submit a run as a job of Ray."""
    words = ("--stage=train_adapter", f"--ray-address={cluster.dashboard}")
    return ClusterRun(head_of(cluster), laptop.start(*command(*words)))
