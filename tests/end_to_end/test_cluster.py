"""A cluster whose nodes share no disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support.cluster import BUCKET, Cluster, NodeOptions, needs_nodes, ray_cluster

pytestmark = [pytest.mark.slow, needs_nodes]

TASK_ON_EACH_NODE = f"""
import os, socket
import boto3, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=0)
def visit():
    name = socket.gethostname()
    open("/tmp/visited", "x").write(name)
    boto3.client("s3").put_object(Bucket={BUCKET!r}, Key=name, Body=b"")
    return name

ray.init(address="auto")
there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes()]
names = ray.get([visit.options(scheduling_strategy=node).remote() for node in there])
keys = [found["Key"] for found in boto3.client("s3").list_objects_v2(Bucket={BUCKET!r})["Contents"]]
print("visited", *sorted(names), "stored", *keys)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(s3=True) as made:
        made.start_head()
        made.add_nodes(NodeOptions(name="data", labels={"realword/pool": "cpu"}), NodeOptions(name="training"))
        yield made


def test_nodes_share_an_object_store_and_nothing_else(cluster: Cluster) -> None:
    assert cluster.head is not None
    printed = cluster.head.run(sys.executable, "-c", TASK_ON_EACH_NODE)

    assert "visited data head training stored data head training" in printed
    for host in cluster.network.hosts:
        assert host.folder("/tmp/visited").read_text() == host.name
    labels = {node["node_name"]: node["labels"].get("realword/pool") for node in cluster.nodes()}
    assert sorted(map(str, labels.values())) == ["None", "None", "cpu"]


def test_nodes_are_lost_and_come_back(cluster: Cluster) -> None:
    _, data, training = cluster.network.hosts
    data.kill()
    training.disconnect()
    cluster.wait_for_nodes(1)

    training.reconnect()
    cluster.rejoin(training)
    cluster.wait_for_nodes(2)
