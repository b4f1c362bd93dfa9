"""The default run, small, on three nodes that share no disk, with an object store and MLflow's server."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import BUCKET, Cluster, NodeOptions, needs_nodes, ray_cluster
from tests.support.hosts import Host
from tests.support.tiny_run import TINY

pytestmark = [pytest.mark.nightly, needs_nodes]

FOLDER = f"s3://{BUCKET}/runs/micro"
PORT = 5000


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with ray_cluster(s3=True) as made:
        made.start_head(NodeOptions(name="head", cpus=0))
        made.add_nodes(NodeOptions(name="first", cpus=2), NodeOptions(name="second", cpus=2))
        yield made


@pytest.fixture
def records(cluster: Cluster) -> str:
    """MLflow's server, on a machine of its own, with its files in the object store."""
    host = cluster.add_laptop("records")
    address = f"{host.address}:{PORT}"
    host.start(
        *("python", "-m", "mlflow", "server", "--host", host.address, "--port", str(PORT), "--workers", "1"),
        *("--allowed-hosts", address, "--backend-store-uri", "sqlite:////tmp/mlflow.db"),
        *("--artifacts-destination", f"s3://{BUCKET}/mlflow"),
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        cwd=Path("/tmp"),
    )
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://{address}/health", timeout=5).close()
            return f"http://{address}"
        except OSError:
            time.sleep(1)
    raise AssertionError("MLflow's server has not started")


def pipeline(host: Host, records: str, *words: str, settings: dict[str, object] = TINY) -> str:
    """What a command prints on a host."""
    values = {"run.folder": FOLDER, "run.tracking_uri": records, **settings}
    options = [f"--set={key}={value}" for key, value in values.items()]
    return host.run("python", "pipeline.py", *words, *options, seconds=1500)


def test_the_default_run_and_its_model(cluster: Cluster, records: str) -> None:
    head, laptop = cluster.host("head"), cluster.add_laptop()
    printed = pipeline(head, records, "run", "--stage=all", "--ray-address=auto")
    assert f"Report:     {FOLDER}/stages/evaluate/" in printed
    assert "Registered: realword-micro version 1" in printed
    assert "Everything is up to date" in pipeline(head, records, "run", "--stage=all", "--ray-address=auto")

    assert FOLDER in pipeline(laptop, records, "report", settings={}), "on a machine that is no node"
    subject = "docs/subject.png"
    words = (
        "generate",
        f"--subject={subject}",
        "--word=mug",
        "--prompt=a photo of a mug in the snow",
        "--out=/tmp/out",
    )
    painted = pipeline(laptop, records, *words, settings={})
    (picture, *_) = re.findall(r"^(/tmp/out/\S+\.png)$", painted, re.MULTILINE)
    assert laptop.folder(picture).read_bytes().startswith(b"\x89PNG")
