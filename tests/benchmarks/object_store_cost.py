"""Requests and bytes that each data stage exchanges with an object store, by kind and for 1,000 rows.

    python -m tests.benchmarks.object_store_cost            # 3,000 pictures of the micro world

Hardware and time: any; some minutes on two cores. It needs no network: the store is moto's S3 server on the loopback
interface, which counts what it is asked. The counts hold for any store with S3's protocol, the times do not.

Requests are of five kinds: PUT (with COPY and the parts of large files), GET, HEAD, LIST (with the deletion of many
files, which costs as much), and DELETE. The micro world's pictures count as the stage `ingest` reads them; from the
web nothing of that is asked of the store.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.execution.environment import temporary_folder
from stages.contract import StageContext, StageResult
from stages.ray_tools.cluster import local_cluster
from stages.storage import StorePath, store_path
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.environment import set_benchmark_environment
from tests.support.contexts import make_context
from tests.support.data_stages import INPUTS
from tests.support.object_store import ObjectServer
from tests.support.random_backbone import write_random_backbone

KINDS = ("PUT", "GET", "HEAD", "LIST", "DELETE")


@dataclass
class Traffic:
    """What a store was asked, and the bytes that it has received and sent."""

    requests: Counter[str] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0


class CountingApplication:
    """A WSGI application that counts the requests to another one."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application, self.traffic, self._lock = application, Traffic(), threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """See PEP 3333."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            with self._lock:
                self.traffic.requests[kind_of(environ)] += 1
                self.traffic.received += int(environ.get("CONTENT_LENGTH") or 0)
                if environ["REQUEST_METHOD"] != "HEAD":
                    self.traffic.sent += int(dict(headers).get("Content-Length") or 0)
            return start_response(status, headers, *rest)

        return self.application(environ, start)

    def taken(self) -> Traffic:
        """The traffic since the last call."""
        with self._lock:
            found, self.traffic = self.traffic, Traffic()
        return found


def kind_of(environ: Mapping[str, Any]) -> str:
    """The kind of a request."""
    method, is_bucket = environ["REQUEST_METHOD"], environ["PATH_INFO"].strip("/").count("/") == 0
    if method == "POST":  # the parts of a large file, or the names of files to delete
        return "LIST" if is_bucket else "PUT"
    return "LIST" if method == "GET" and is_bucket else method


@contextmanager
def counted_store() -> Iterator[tuple[CountingApplication, ObjectServer]]:
    """An S3 server that counts."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = CountingApplication(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield application, ObjectServer(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()


def context_of(stage: str, run: StorePath, pictures: int, shard: int, backbone: Path) -> StageContext:
    """The stage's context in a run folder: its output is `<stage>/output`. A shard has `shard` rows."""
    inputs = {name: run / name / "output" for name in INPUTS[stage]}
    return make_context(
        run / stage,
        {**inputs, "base": backbone} if stage == "cache_latents" else inputs,
        microworld={"pictures": pictures, "multiview_instances": max(24, pictures // 12)},
        ingest={"allow_private_addresses": True, "samples_per_shard": shard},
        curriculum={"steps": pictures // 16},
        cache_latents={"enabled": True},
        prompts={"captions": 100},
    )


def run_stages(
    names: Sequence[str], run: StorePath, pictures: int, shard: int, application: CountingApplication
) -> None:
    """Run the stages and print a line for each."""
    print(f"{'stage':14}{'rows':>8}{'seconds':>9}" + "".join(f"{kind:>8}" for kind in KINDS), end="")
    print(f"{'per 1000':>10}{'MB in':>8}{'MB out':>8}")
    with tempfile.TemporaryDirectory() as folder:
        backbone = Path(folder)
        write_random_backbone(backbone / "backbone")
        for name in names:
            application.taken()
            began = time.monotonic()
            result: StageResult = import_module(f"stages.{name}.stage").run(
                context_of(name, run, pictures, shard, backbone)
            )
            print_line(name, sum(result.rows.values()), time.monotonic() - began, application.taken())


def print_line(name: str, rows: int, seconds: float, traffic: Traffic) -> None:
    """A line of the table."""
    counts = "".join(f"{traffic.requests[kind]:8}" for kind in KINDS)
    rate = 1000 * traffic.requests.total() / max(1, rows)
    print(
        f"{name:14}{rows:8}{seconds:9.1f}{counts}{rate:10.1f}{traffic.received / 1e6:8.1f}{traffic.sent / 1e6:8.1f}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--samples-per-shard", type=int, default=600)
    parser.add_argument("--stages", nargs="+", choices=tuple(INPUTS), default=list(INPUTS))
    options = parser.parse_args(arguments)
    set_benchmark_environment("micro")
    with tempfile.TemporaryDirectory() as name, counted_store() as (application, server):
        os.environ.update(server.environment, XDG_CACHE_HOME=f"{name}/cache")
        run = store_path(f"{server.new_bucket()}/run")
        with temporary_folder(Path(name)), local_cluster():
            run_stages(options.stages, run, options.pictures, options.samples_per_shard, application)


if __name__ == "__main__":
    main()
