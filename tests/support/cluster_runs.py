"""Tiny runs on a cluster whose nodes share nothing but an object store, to be disturbed while they are at work."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.support.cluster import BUCKET, S3_CREDENTIALS, Cluster
from tests.support.hosts import Command, Host
from tests.support.tiny_run import TINY

#: The name of the run folder in the bucket.
FOLDER = "run"
#: Small, but with some shards, file groups, parts and checkpoints.
SETTINGS: dict[str, Any] = {
    **TINY,
    "run.folder": f"s3://{BUCKET}/{FOLDER}",
    "microworld.pictures": 1300,
    "ingest.samples_per_shard": 130,
    "cache_latents.enabled": "true",
    "cache_latents.actors": 2,
    "curriculum.steps": 48,
    "train_adapter.trainer.checkpoint_every": 8,
    "train_adapter.data_workers": 0,
    "train_adapter.sample_every": "null",
}


@dataclass
class ClusterRun:
    """A command `run` that a host of the cluster carries out.

    Attributes:
        host: Where its driver is.
        command: The running command.
    """

    host: Host
    command: Command

    def wait_for(self, stage: str, done: int, seconds: float = 600) -> None:
        """Wait until `stage` has reported progress of at least `done`."""
        events = self.host.folder(local_folder() / "logs" / f"{stage}.events.jsonl")
        wait_until(
            lambda: self.command.entered.poll() is not None or _reported(events, done),
            f"{stage} did not reach {done}",
            seconds,
        )
        assert self.command.entered.poll() is None, f"the run has ended: {self.command.wait(1).stdout}"

    def log(self, stage: str) -> str:
        """What the stage and Ray have printed so far."""
        return self.host.folder(local_folder() / "logs" / f"{stage}.log").read_text()

    def finish(self, seconds: float = 600) -> str:
        """Wait for a good end; returns what the command has printed."""
        ended = self.command.wait(seconds)
        assert ended.returncode == 0, ended.stdout
        return str(ended.stdout)


def command(*words: str) -> list[str]:
    """The command line of a run; the last of two settings counts."""
    return ["python", "pipeline.py", "run", *(f"--set={key}={value}" for key, value in SETTINGS.items()), *words]


def start(host: Host, *words: str) -> ClusterRun:
    """Start a run on a host of the cluster."""
    return ClusterRun(host, host.start(*command("--ray-address=auto", *words)))


def local_folder() -> Path:
    """Where the driver's machine keeps what cannot be in the object store (see `Store.local_folder`)."""
    key = sha256(SETTINGS["run.folder"].encode()).hexdigest()[:16]
    return Path.home() / ".cache" / "realword" / "runs" / key


def wait_until(condition: Callable[[], object], otherwise: str, seconds: float = 600) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def node_at_work(nodes: Sequence[Host], task: str) -> Host:
    """Wait until a worker of one of the nodes is at work on a task or an actor of this name; returns the node."""
    found: list[Host] = []

    def look() -> bool:
        found.extend(node for node in nodes if workers_of(node, task))
        return bool(found)

    wait_until(look, f"no node works on {task}")
    return found[0]


def workers_of(node: Host, task: str) -> list[int]:
    """The process ids, on a node, of workers that are at work on a task or an actor whose name has this in it."""
    processes = (folder for folder in node.folder("/proc").iterdir() if folder.name.isdigit())
    titles = ((int(folder.name), _title(folder)) for folder in processes)
    return [process for process, title in titles if title.startswith("ray::") and task in title]


def _title(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has ended
        return ""


def _reported(events: Path, done: int) -> bool:
    if not events.exists():
        return False
    lines = [json.loads(line) for line in events.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return any(line["event"] == "progress" and line["done"] >= done for line in lines)


@dataclass
class Bucket:
    """The cluster's object store, as the test process reaches it."""

    cluster: Cluster
    _client: Any = field(default=None)

    @property
    def client(self) -> Any:
        """A client of boto3."""
        if self._client is None:
            import boto3

            self._client = boto3.client(
                "s3",
                endpoint_url=self.cluster.environment["AWS_ENDPOINT_URL"],
                aws_access_key_id=S3_CREDENTIALS["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=S3_CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                region_name=S3_CREDENTIALS["AWS_DEFAULT_REGION"],
            )
        return self._client

    def names(self, prefix: str) -> list[str]:
        """The names of all objects that begin with a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def read(self, name: str) -> bytes:
        """The content of an object."""
        return bytes(self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read())

    def ids(self, stage: str, dataset: str) -> list[str]:
        """The sample ids of a dataset of the only output in a stage's folder."""
        files = [name for name in self.names(f"{stage}/") if f"/{dataset}/part-" in name]
        tables = [pq.read_table(io.BytesIO(self.read(name)), columns=["sample_id"]) for name in files]
        return [sample_id for table in tables for sample_id in table["sample_id"].to_pylist()]

    def remove_outputs(self, *stages: str) -> None:
        """Make stages of the run folder undone."""
        for name in (name for stage in stages for name in self.names(f"{FOLDER}/stages/{stage}/")):
            self.client.delete_object(Bucket=BUCKET, Key=name)

    def manifests(self) -> dict[str, dict[str, Any]]:
        """The manifest of each finished stage of the run folder."""
        names = [name for name in self.names(f"{FOLDER}/stages/") if name.endswith("/manifest.json")]
        found = [json.loads(self.read(name)) for name in names]
        return {manifest["stage"]: manifest for manifest in found}

    def steps(self) -> list[int]:
        """The steps that the adapter's training has recorded; those that were trained again are there twice."""
        files = [name for name in self.names(f"{FOLDER}/stages/train_adapter/") if name.endswith("/adapter.jsonl")]
        lines = [line for name in files for line in self.read(name).decode().splitlines() if line.endswith("}")]
        return [json.loads(line)["step"] for line in lines]

    def assert_outputs(self, expected: Mapping[str, Mapping[str, Any]], stages: Iterable[str]) -> None:
        """The stages' datasets have the expected manifests' rows in the same files, byte for byte, and nothing else is
        there.
        """
        found = self.manifests()
        for stage in stages:
            mine, other = found[stage], expected[stage]
            for key in ("fingerprint", "rows", "datasets", "files"):
                assert mine[key] == other[key], f"{key} of {stage}"
            output = f"{FOLDER}/stages/{stage}/{mine['fingerprint']}/"
            names = {name.removeprefix(output) for name in self.names(f"{FOLDER}/stages/{stage}/")}
            assert names == {*mine["files"], "manifest.json"}
