"""Trainings whose folder is a bucket, as on machines that share no disk."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from upath import UPath

from stages.cache import cache_folder
from stages.contract import StageError
from stages.local_copies import local_copy
from stages.storage import StorePath, copy_folder, remove, store_path, write_whole
from stages.training import record
from stages.training.checkpoints import Checkpoint, CheckpointFolder, CheckpointWriter
from stages.training.job import TrainingJob
from stages.training.loop import run_worker
from stages.training.record import RecordReader
from stages.training.trainer import check_resume, read_curves
from tests.stages.training.test_loop import STEPS, make_job, trained
from tests.stages.training.test_trainer import CONFIG, SEED, assert_same, fit_linear, plain_loop
from tests.support.checkpoints import STATE, write
from tests.support.contexts import make_context
from tests.support.training_tasks import LinearTask


@pytest.fixture
def folder(bucket: str, monkeypatch: pytest.MonkeyPatch) -> StorePath:
    monkeypatch.setattr(record, "STORE_SECONDS", 0.05)
    return store_path(f"{bucket}/run/train")


def test_shares_are_uploaded_and_read_back_on_another_disk(folder: StorePath) -> None:
    checkpoint = write(CheckpointFolder(folder), 100, workers=3)
    assert checkpoint.is_complete()
    assert checkpoint.step == checkpoint.state()["step"] == 100
    local = checkpoint.local()
    assert local.folder.is_relative_to(cache_folder())
    local.check()
    assert sorted(dict(local.tensors())) == ["weight/0", "weight/1", "weight/2"]


def test_what_is_kept_is_known_from_the_listing(folder: StorePath) -> None:
    checkpoints = CheckpointFolder(folder, keep=2)
    assert checkpoints.complete() == []
    assert checkpoints.latest() is None
    for step, loss in [(1, 0.9), (2, 0.1), (3, None), (4, 0.8), (5, 0.7)]:
        write(checkpoints, step, loss)
    checkpoints.at(6).write_share(1, 2, {}, None)
    checkpoints.prune()
    assert [checkpoint.step for checkpoint in checkpoints.complete()] == [2, 4, 5]
    assert [path.name for path in checkpoints.at(6).folder.iterdir()] != []
    checkpoints.remove_incomplete()
    assert not checkpoints.at(6).folder.exists()
    assert checkpoints.latest() == checkpoints.at(5)


@pytest.mark.parametrize("missing", ["rank-0-of-2.json", "rank-1-of-2.json"])
def test_a_checkpoint_that_was_uploaded_in_part_is_none(folder: StorePath, missing: str) -> None:
    checkpoints = CheckpointFolder(folder)
    first = write(checkpoints, 10)
    (write(checkpoints, 20).folder / missing).unlink()
    assert checkpoints.latest() == first


def test_what_another_number_of_workers_has_begun_does_not_matter(folder: StorePath) -> None:
    checkpoint = write(CheckpointFolder(folder), 10)
    checkpoint.write_share(2, 8, {"weight/0": torch.zeros(1)}, None)
    local = checkpoint.local()
    local.check()
    assert dict(local.tensors())["weight/0"].shape == (2, 3)


@pytest.mark.parametrize("name", ["rank-0-of-2.safetensors", "rank-1-of-2.safetensors", "training.json"])
def test_damage_is_found_where_the_checkpoint_is_read(folder: StorePath, name: str) -> None:
    checkpoint = write(CheckpointFolder(folder), 10)
    *kept, last = (checkpoint.folder / name).read_bytes()
    write_whole(checkpoint.folder / name, bytes([*kept, last ^ 1]))
    with pytest.raises(StageError, match=rf"{name} is damaged \(its checksum is not the one in rank-.-of-2.json\)$"):
        checkpoint.local().check()


def test_a_bucket_that_is_gone_ends_in_one_sentence(bucket: str) -> None:
    writer = CheckpointWriter(CheckpointFolder(store_path(f"{bucket}-gone/train")), 0, 1)
    writer.write(1, {"weight/a": torch.ones(3)}, STATE)
    with pytest.raises(StageError, match=r"^checkpoint s3://.*-gone/train/step-00000001: there is no such bucket"):
        writer.wait()


def test_a_store_that_is_away_ends_in_one_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    UPath(bucket).fs.clear_instance_cache()
    writer = CheckpointWriter(CheckpointFolder(store_path(f"{bucket}/train")), 0, 1)
    writer.write(1, {"weight/a": torch.ones(3)}, STATE)
    with pytest.raises(StageError, match=r"^checkpoint s3://.*/step-00000001: it cannot be reached from .*: check the"):
        writer.wait()


@pytest.fixture
def refusing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that refuses each request with the status and the code in the list, which then counts requests."""
    answer: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # a client asks before it sends

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer.append(self.path)
            body = f"<Error><Code>{answer[1]}</Code><Message>no</Message></Error>".encode()
            self.send_response(int(answer[0]))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    UPath(bucket).fs.clear_instance_cache()
    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "sentence", "requests"),
    [
        ("400", "ExpiredToken", "the credentials have expired: renew them and run the same command", 1),
        ("403", "AccessDenied", "access is denied: these credentials need permission", 1),
        ("403", "InvalidAccessKeyId", "the store does not know these credentials", 1),
        ("403", "RequestTimeTooSkewed", "the clock of .* is wrong", 1),
        ("404", "NoSuchBucket", "there is no such bucket", 1),
        pytest.param("503", "SlowDown", "the store asked to slow down, and still did after", 2, marks=pytest.mark.slow),
    ],
)
def test_a_refused_checkpoint_is_explained(
    bucket: str, refusing: list[str], status: str, code: str, sentence: str, requests: int
) -> None:
    refusing += [status, code]
    writer = CheckpointWriter(CheckpointFolder(store_path(f"{bucket}/train")), 0, 1)
    writer.write(1, {"weight/a": torch.ones(3)}, STATE)
    with pytest.raises(StageError, match=rf"^checkpoint s3://.*/step-00000001: {sentence}"):
        writer.wait()
    assert len(refusing) - 2 >= requests


def stopped(job: TrainingJob) -> int:
    """Run a worker and stop it as the driver does; returns its last step."""

    def ask() -> None:
        while not read_curves(job.metrics_file).get("loss"):
            time.sleep(0.02)
        write_whole(job.stop_request, b"")

    threading.Thread(target=ask).start()
    run_worker(job, torch.device("cpu"))
    assert "was stopped after step" in job.ending.read_text()
    remove(job.ending)
    remove(job.stop_request)
    latest = job.checkpoints.latest()
    assert latest is not None
    return latest.step


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_stopped_training_resumes_exactly_on_another_machine(
    process_group: None, folder: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    uninterrupted = trained(make_job(tmp_path / "a", zero_stage=zero_stage))
    job = dataclasses.replace(
        make_job(tmp_path / "b", LinearTask(seconds_a_step=0.05), zero_stage=zero_stage), folder=folder
    )
    step = stopped(job)
    assert 0 < step < STEPS
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    check_resume(job)
    run_worker(job, torch.device("cpu"))
    resumed = load_file(local_copy(job.weights) / "model.safetensors")
    assert all(torch.equal(resumed[name], weight) for name, weight in uninterrupted.items())
    expected = read_curves(tmp_path / "a" / "linear.jsonl")["loss"]
    assert read_curves(job.metrics_file)["loss"] == expected
    assert not list((tmp_path / "another machine").rglob("step-*")), "copies of checkpoints are deleted"


@pytest.mark.slow
def test_metrics_are_in_the_store_before_their_checkpoint(
    process_group: None, folder: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "STORE_SECONDS", 1000.0)
    job = dataclasses.replace(make_job(tmp_path, checkpoint_every=4, keep_checkpoints=9), folder=folder)
    seen: list[tuple[int, int]] = []
    write_share = Checkpoint.write_share

    def note(checkpoint: Checkpoint, *arguments: Any) -> None:
        steps = [line["step"] for line in RecordReader(job.metrics_file).read()]
        seen.append((checkpoint.step, max(steps)))
        write_share(checkpoint, *arguments)

    monkeypatch.setattr(Checkpoint, "write_share", note)
    run_worker(job, torch.device("cpu"))
    assert [step for step, _ in seen] == [4, 8]
    assert all(last >= step for step, last in seen)


@pytest.mark.slow
def test_a_moved_run_folder_resumes(process_group: None, folder: StorePath, tmp_path: Path) -> None:
    job = dataclasses.replace(make_job(tmp_path, LinearTask(seconds_a_step=0.05)), folder=folder)
    step = stopped(job)
    moved = dataclasses.replace(job, folder=folder.with_name("moved"))
    copy_folder(folder, moved.folder)
    remove(folder)
    check_resume(moved)
    run_worker(moved, torch.device("cpu"))
    assert [found for found, _ in read_curves(moved.metrics_file)["loss"]] == list(range(1, STEPS + 1))
    assert 0 < step < STEPS


@pytest.mark.slow
def test_another_configuration_is_refused_before_anything_is_copied(
    process_group: None, folder: StorePath, tmp_path: Path
) -> None:
    checkpoint = write(CheckpointFolder(folder / "linear-checkpoints"), 4)
    job = dataclasses.replace(make_job(tmp_path), folder=folder)
    with pytest.raises(
        StageError, match=r"^s3://.*step-00000004 is of another configuration .* delete s3://.*linear-c"
    ):
        check_resume(job)
    write_whole(checkpoint.folder / "training.json", json.dumps({"config": job.identity()})[:-5])
    with pytest.raises(StageError, match=r"training.json is damaged \(it is not JSON\); delete s3://"):
        check_resume(job)


@pytest.mark.slow
def test_a_worker_that_is_killed_goes_on_from_the_bucket(ray_cluster: str, bucket: str, tmp_path: Path) -> None:
    """As `test_a_killed_worker_changes_nothing` on a disk: the same weights, and each step is reported once."""
    events: list[Any] = []
    context = make_context(store_path(f"{bucket}/run"), events=events)
    weights, curves = fit_linear(LinearTask(kill_at=25, marker=tmp_path / "marker"), CONFIG, context)
    assert (tmp_path / "marker").exists()
    assert_same(weights, plain_loop(LinearTask(), CONFIG, 40, SEED)[0])
    assert [step for step, _ in curves["loss"]] == list(range(1, 41))
    reported = [(e["step"], e["value"]) for e in events if e["event"] == "metric" and e["key"] == "linear/loss"]
    assert reported == curves["loss"]
    assert [event["text"] for event in events if event["event"] == "warning"] != []
