"""A cluster whose nodes share no disk, with token authentication; a laptop that is no node submits runs to it."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import BUCKET, Cluster, NodeOptions, needs_nodes, ray_cluster
from tests.support.hosts import Host

pytestmark = [pytest.mark.slow, needs_nodes]

TOKEN = "0123456789abcdef" * 4
FOLDER = Path("/tmp/run")

#: Prints where tasks run that need no GPU, and what the nodes share.
TASKS = f"""
import socket
import boto3, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from stages.ray_tools.placement import node_selector

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
name = ray.remote(num_cpus=0.5, label_selector=node_selector())(lambda: socket.gethostname())
print("visited", *sorted(names), "stored", *keys, "without GPUs", *set(ray.get([name.remote() for _ in range(12)])))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(s3=True, token=TOKEN) as made:
        made.start_head(NodeOptions(name="head", cpus=0))
        options = NodeOptions(name="training", labels={"realword/pool": "gpu"})
        made.add_nodes(NodeOptions(name="data", labels={"realword/pool": "cpu"}), options)
        yield made


@pytest.fixture(scope="module")
def laptop(cluster: Cluster) -> Host:
    return cluster.add_laptop()


def pipeline(words: str) -> list[str]:
    return ["python", "pipeline.py", *shlex.split(words)]


def test_nodes_share_an_object_store_and_nothing_else(cluster: Cluster) -> None:
    assert cluster.head is not None
    printed = cluster.head.run(sys.executable, "-c", TASKS)

    assert "visited data head training stored data head training without GPUs data" in printed
    for name in ("head", "data", "training"):
        assert cluster.host(name).folder("/tmp/visited").read_text() == name


def test_a_run_that_a_laptop_submits_is_checked_on_all_nodes_before_its_first_stage(
    cluster: Cluster, laptop: Host
) -> None:
    """The nodes have the code from the job, the run has none of their folders; its exit code is the command's."""
    command = pipeline(f"run --stage prompts --ray-address {cluster.dashboard} --set run.folder={FOLDER}")
    ended = laptop.start(*command).wait(120)

    assert ended.returncode == 1
    assert f"the run folder {FOLDER} is not on a disk that it shares with this machine" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("error: The job ")


@pytest.mark.parametrize(
    ("token", "address", "words"),
    [
        ("f" * 64, "{dashboard}", "token: set RAY_AUTH_MODE=token"),
        ("", "{dashboard}", "token: set RAY_AUTH_MODE=token"),
        (TOKEN, "{address}", "no node of that cluster"),
    ],
)
def test_a_laptop_without_the_token_or_the_dashboard(
    token: str, address: str, words: str, cluster: Cluster, laptop: Host
) -> None:
    where = address.format(dashboard=cluster.dashboard, address=cluster.address)
    command = pipeline(f"run --ray-address {where} --set run.folder={FOLDER}")
    ended = laptop.start(*command, environment={"RAY_AUTH_TOKEN": token}).wait(60)

    assert ended.returncode == 1
    (line,) = ended.stdout.splitlines()
    assert words in line


@pytest.mark.nightly
def test_nodes_are_lost_and_come_back(cluster: Cluster) -> None:
    data, training = cluster.host("data"), cluster.host("training")
    data.kill()
    training.disconnect()
    cluster.wait_for_nodes(1)

    training.reconnect()
    cluster.rejoin(training)
    cluster.wait_for_nodes(2)


@pytest.mark.nightly
def test_a_job_that_is_stopped_goes_on_under_another_name() -> None:
    """On a head that does all the work, whose disk outlives the job."""
    with ray_cluster() as cluster:
        head = cluster.start_head(NodeOptions(name="head", cpus=8, object_store=256 * 2**20))
        own = cluster.add_laptop()
        settings = (
            f"--set run.folder={FOLDER} --set contextualizer.steps=60 --set contextualizer.trainer.checkpoint_every=5"
        )
        command = f"run --stage contextualizer --ray-address {cluster.dashboard} {settings}"
        first = own.start(*pipeline(command))
        metrics = head.folder(FOLDER / "stages")
        deadline = time.monotonic() + 500
        while not any(metrics.glob("contextualizer/*/scratch/train/*-checkpoints/*")):
            assert time.monotonic() < deadline
            assert first.entered.poll() is None, first.wait(1).stdout
            time.sleep(0.5)
        first.send_signal(signal.SIGINT)
        stopped = first.wait(200)
        assert stopped.returncode == 1
        assert "the same command goes on" in stopped.stdout, stopped.stdout

        printed = own.run(*pipeline(command), seconds=500)
        assert "contextualizer" in printed
        assert "done in" in printed
