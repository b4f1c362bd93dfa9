"""The data stages in an object store: the bytes are those on a disk, and a killed stage goes on from there."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from stages.contract import StageError, StageResult
from stages.data.bulk_files import fetched_folder
from stages.data.datasets import dataset_rows, read_dataset, write_dataset
from stages.data.schemas import CAPTIONS
from stages.filter.adoption import adopt_file
from stages.filter.layouts import find_layout
from stages.storage import StorePath, file_records, store_path, upload
from tests.support.contexts import make_context
from tests.support.data_stages import INPUTS
from tests.support.random_backbone import write_random_backbone
from tests.support.tiny_plan import encoded_picture

pytestmark = pytest.mark.slow

CHANGES: Mapping[str, Any] = {
    "microworld": {"pictures": 60, "multiview_instances": 6, "views": 3, "picture_size": 32},
    "ingest": {"samples_per_shard": 25, "allow_private_addresses": True},
    "filter": {"min_side": 20},
    "curriculum": {"steps": 4, "batch_size": 4},
    "cache_latents": {"enabled": True, "batch_size": 8},
    "prompts": {"concepts": ["duck"], "prompts_per_concept": 10, "captions": 5},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_random_backbone(folder / "backbone")
    return folder


def run_stage(name: str, run: StorePath, backbone: Path) -> StageResult:
    """Run a stage in a run folder, where its output is `<stage>/output`."""
    inputs: dict[str, StorePath] = {upstream: run / upstream / "output" for upstream in INPUTS[name]}
    if name == "cache_latents":
        inputs["base"] = backbone
    context = make_context(run / name, inputs, **CHANGES)
    result: StageResult = import_module(f"stages.{name}.stage").run(context)
    return result


def test_every_stage_makes_the_same_bytes_in_a_store_as_on_a_disk(
    bucket: str, backbone: Path, tmp_path: Path, ray_cluster: str
) -> None:
    run = store_path(f"{bucket}/run")
    for name in INPUTS:
        on_disk = run_stage(name, tmp_path, backbone)
        if name == "microworld":  # renders for seconds; below it is made in the store once more
            upload(tmp_path / name / "output", run / name / "output")
        else:
            assert run_stage(name, run, backbone) == on_disk
        with fetched_folder(run / name / "output") as found:
            assert file_records(found) == file_records(tmp_path / name / "output"), name
    _go_on_elsewhere(run, backbone, tmp_path)


def _go_on_elsewhere(run: StorePath, backbone: Path, tmp_path: Path) -> None:
    """The head has died before the second shard was done; another one, with an empty disk, goes on."""
    shards = run / "ingest" / "scratch" / "shards"
    for name in ("00001.done", "00001.parquet"):
        (shards / name).unlink()
    kept = (shards / "00000.parquet").stat().st_mtime
    run_stage("ingest", run, backbone)
    assert (shards / "00000.parquet").stat().st_mtime == kept
    assert (shards / "00001.done").is_file()
    with fetched_folder(run / "ingest" / "output") as found:
        assert file_records(found) == file_records(tmp_path / "ingest" / "output")


def test_pictures_of_other_tools_may_lie_in_a_store(bucket: str, tmp_path: Path) -> None:
    rows = {"image": [encoded_picture(number) for number in range(3)] + [b"no picture"], "text": ["a mug"] * 4}
    (tmp_path / "source").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "source" / "0.parquet")
    upload(tmp_path / "source", store_path(f"{bucket}/source"))
    for source, adopted in (
        (tmp_path / "source", tmp_path / "disk"),
        (store_path(f"{bucket}/source"), tmp_path / "s3"),
    ):
        layout = find_layout(source)
        adopt_file(layout, 0, source, adopted)
    assert file_records(tmp_path / "s3") == file_records(tmp_path / "disk")
    assert dataset_rows(tmp_path / "s3" / "samples") == 3
    with pytest.raises(StageError, match=r"there is no folder .*elsewhere, or it is empty"):
        find_layout(store_path(f"{bucket}/elsewhere"))


class Throttle:
    """A WSGI application that refuses the first two requests for each thing, as a busy store does."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application, self.asked = application, Counter[str]()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.asked[request] += 1
        if self.asked[request] > 2:
            return self.application(environ, start_response)
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        code = ("SlowDown", "InternalError")[self.asked[request] % 2]
        return [f"<Error><Code>{code}</Code><Message>Reduce your request rate.</Message></Error>".encode()]


def test_a_store_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    throttle = Throttle(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, throttle, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    folder = store_path(f"{bucket}/busy")
    write_dataset(folder / "captions", pa.table({"caption_id": ["a"], "caption": ["a mug"]}), CAPTIONS)
    assert read_dataset(folder / "captions", CAPTIONS)["caption"].to_pylist() == ["a mug"]
    with fetched_folder(folder) as local:
        assert list(file_records(local)) == ["captions/part-00000.parquet"]
    assert min(throttle.asked.values()) > 2
    server.shutdown()
