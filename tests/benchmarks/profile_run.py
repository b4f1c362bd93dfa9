"""The whole of a profile, sd15 or sdxl, in the shapes of its models with random weights: memory and time of each stage.

    python -m tests.benchmarks.profile_run DREAMBENCH --profile sd15 --output runs/profile_sd15

Hardware and time: two cores, 24 GiB of memory, 20 GB of disk; an hour for sd15. On GPUs, with `--gpu`, the profile
keeps its devices and precision.

DREAMBENCH is a folder of photographs in DreamBench's layout. They are the web (a loopback server has their URLs), the
subjects that are seen from several sides, the subject to learn, and those to evaluate. Models come by their hub ids
from a cache of the hub in OUTPUT. A few steps, pictures and prompts replace the profile's; `--narrow` gives models
with few channels, to try this command. Each stage is a command of its own, then come `generate` and `serve` with one
request. Memory is the PSS of all processes of a command together.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import requests
from PIL import Image

from model.pictures.decoding import picture_files
from pipelines.config.loading import load_config
from pipelines.graph import pipeline_graph
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.hub_models import CLIP_B, CLIP_L, DINO, DINO_S, SD15, SDXL, SIGLIP, write_hub_cache
from tests.benchmarks.support.process_tree import TreeMeter

REPOSITORIES = {
    "sd15": (SD15, SIGLIP, DINO, CLIP_B, CLIP_L, DINO_S),
    "sdxl": (SDXL, SD15, SIGLIP, DINO, CLIP_B, CLIP_L, DINO_S),
}
#: The amount of work, whatever the profile says; published photographs have 512 pixels, less than sdxl asks for.
_AMOUNTS: dict[str, Any] = {
    "ingest.samples_per_shard": 20,
    "ingest.processes": 2,
    "ingest.threads": 4,
    "filter.min_side": 256,
    "curriculum.steps": 2,
    "curriculum.batch_size": 1,
    "train_adapter.sample_every": 2,
    "train_adapter.trainer.accumulation": 1,
    "inference.steps": 2,
    "inference.mask_steps": 1,
    "prompts.prompts_per_concept": 10,
    "contextualizer.steps": 2,
    "contextualizer.batch_size": 2,
    "customize.steps": 2,
    "customize.batch_size": 1,
    "customize.sample_every": "null",
    "customize.scoring.prompts": 2,
    "customize.scoring.steps": 2,
    "evaluate.subjects": 1,
    "evaluate.prompts_per_subject": 1,
    "evaluate.batch_size": 1,
}
_ON_CPUS = {"compute.use_gpu": "false", "compute.workers": 1}
_START_SECONDS, _ANSWER_SECONDS = 600, 1800
_WEB_PORT, _SERVER_PORT = 8764, 8765
_SUBJECT = "dog"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a command.

    Attributes:
        seconds: By the clock.
        cpu_seconds: Of all its processes.
        peak_bytes: Most memory of all its processes together.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@contextmanager
def photographs_served(folder: Path) -> Iterator[str]:
    """The address of a loopback server of the folder's files. The port is part of the ids, so it stays the same."""
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", _WEB_PORT), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{_WEB_PORT}"
        finally:
            server.shutdown()
            thread.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def write_metadata(dreambench: Path, address: str, file: Path) -> None:
    """Write a table as LAION's with a row for each photograph."""
    rows = []
    for subject in sorted(path for path in dreambench.iterdir() if path.is_dir()):
        for picture in picture_files(subject):
            width, height = Image.open(picture).size
            rows.append(
                {
                    "URL": f"{address}/{picture.relative_to(dreambench)}",
                    "TEXT": f"a photo of a {subject.name.rstrip('0123456789').replace('_', ' ')} at home",
                    "WIDTH": width,
                    "HEIGHT": height,
                    "similarity": 0.32,
                    "punsafe": 0.01,
                    "pwatermark": 0.1,
                    "AESTHETIC_SCORE": 6.0,
                }
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def settings(dreambench: Path, output: Path, *, gpu: bool) -> list[str]:
    """The arguments that replace the profile's paths and amounts, and on CPUs its devices."""
    values: dict[str, Any] = {
        "run.folder": output / "run",
        "ingest.metadata": output / "laion" / "part-0.parquet",
        "ingest.allow_private_addresses": "true",
        "multiview.folders": f"[{dreambench}]",
        "customize.subjects": f"[{dreambench / _SUBJECT}]",
        "evaluate.subjects_folder": dreambench,
        **_AMOUNTS,
        **({} if gpu else _ON_CPUS),
    }
    return [argument for key, value in values.items() for argument in ("--set", f"{key}={value}")]


@dataclass(frozen=True, kw_only=True)
class ProfileRun:
    """The commands of one profile."""

    profile: str
    output: Path
    settings: Sequence[str]

    @property
    def stages(self) -> list[str]:
        """The names of the profile's stages, upstream first."""
        overrides = [self.settings[index] for index in range(1, len(self.settings), 2)]
        return pipeline_graph(load_config(self.profile, overrides)).order

    def command(self, name: str, *arguments: str) -> list[str]:
        """A command of `pipeline.py`."""
        return [sys.executable, "pipeline.py", name, *arguments, "--profile", self.profile, *self.settings]

    def measure(self, title: str, name: str, *arguments: str) -> Cost:
        """Run a command to its end; `title` names its log.

        Raises:
            RuntimeError: It fails; what it printed is in the output folder.
        """
        log = self._log(title)
        with log.open("w") as file:
            process = self._start(file, name, *arguments)
            with TreeMeter(process.pid, memory=True) as meter:
                began = time.perf_counter()
                process.wait()
                seconds = time.perf_counter() - began
        if process.returncode:
            raise RuntimeError(f"{title} failed: see {log}")
        return Cost(seconds=seconds, cpu_seconds=meter.cpu_seconds, peak_bytes=meter.peak_all)

    def measure_request(self, picture: Path) -> Cost:
        """Start the server, and let it answer one request.

        Raises:
            RuntimeError: It does not start, or answers with an error.
        """
        address = f"http://127.0.0.1:{_SERVER_PORT}"
        with self._log("serve").open("w") as file:
            limit = f"serve.timeout_seconds={_ANSWER_SECONDS}"
            process = self._start(file, "serve", "--set", f"serve.port={_SERVER_PORT}", "--set", limit)
            try:
                with TreeMeter(process.pid, memory=True) as meter:
                    _wait_until_ready(f"{address}/ready", process)
                    began = time.perf_counter()
                    answer = requests.post(
                        f"{address}/v1/images/edits",
                        files={"image": picture.read_bytes()},
                        data={"prompt": f"a [{_SUBJECT}] in the snow"},
                        timeout=_ANSWER_SECONDS,
                    )
                    seconds = time.perf_counter() - began
                    if not answer.ok:
                        raise RuntimeError(f"serve answered {answer.status_code}: {answer.text[:500]}")
            finally:
                process.terminate()
                process.wait()
        return Cost(seconds=seconds, cpu_seconds=meter.cpu_seconds, peak_bytes=meter.peak_all)

    def _log(self, name: str) -> Path:
        folder = self.output / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"

    def _start(self, log: Any, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"HF_HUB_CACHE": str(self.output / "hub"), "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(self.command(name, *arguments), env=environment, stdout=log, stderr=log)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if requests.get(address, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(1)
    raise RuntimeError("serve is not ready")


def costs(run: ProfileRun, dreambench: Path) -> Iterator[tuple[str, Cost]]:
    """Run all stages, paint a picture, and serve one."""
    for stage in run.stages:
        yield stage, run.measure(stage, "run", "--stage", stage)
    picture = picture_files(dreambench / _SUBJECT)[0]
    request = ["--subject", str(picture), "--word", _SUBJECT, "--prompt", f"a {_SUBJECT} in the snow"]
    yield "generate", run.measure("generate", "generate", *request)
    yield "serve, a request", run.measure_request(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write `costs.json` into the output folder."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("dreambench", type=Path)
    parser.add_argument("--profile", choices=list(REPOSITORIES), default="sd15")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--narrow", action="store_true", help="models with few channels")
    parser.add_argument("--gpu", action="store_true", help="keep the profile's devices, workers and precision")
    parser.add_argument("--set", dest="more", action="append", default=[], help="another setting of the profile")
    options = parser.parse_args(arguments)
    output, dreambench = options.output.resolve(), options.dreambench.resolve()
    write_hub_cache(output / "hub", REPOSITORIES[options.profile], narrow=options.narrow)
    more = [argument for setting in options.more for argument in ("--set", setting)]
    run = ProfileRun(
        profile=options.profile,
        output=output,
        settings=[*settings(dreambench, output, gpu=options.gpu), *more],
    )
    found = {}
    print("| command | seconds | CPU seconds | GiB, all processes |\n|---|---|---|---|", flush=True)
    with photographs_served(dreambench) as address:
        write_metadata(dreambench, address, output / "laion" / "part-0.parquet")
        for name, cost in costs(run, dreambench):
            found[name] = vars(cost)
            row = f"| {name} | {cost.seconds:.0f} | {cost.cpu_seconds:.0f} | {cost.peak_bytes / 2**30:.1f} |"
            print(row, flush=True)
    (output / "costs.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
