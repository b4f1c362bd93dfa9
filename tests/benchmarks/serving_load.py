"""The server against a direct call of its model, under twice its load, and with clients that leave.

    python -m tests.benchmarks.serving_load                       # speed and disconnects
    python -m tests.benchmarks.serving_load --minutes 10 --plot docs/serving_load.png

Hardware and time: two idle cores; two minutes, and `--minutes` of load, which `hey` makes (Debian's package; it is not
of this project). It serves the model that ships, with `python pipeline.py serve` and batches of eight.

Speed: a request and a direct call of the same picture alternate; the best direct batch of 1, 2, 4 and 8 pictures
alternates with eight clients at once; the first preview is that of a stream. Load: clients that send twice as many
requests as were answered at concurrency 8, each answered within ten seconds or refused; memory is that of the
processes with the front and the painters. Disconnects: 200 clients close their connection at a random time within
their request; the seconds until nothing is painted, and how many pictures were painted anyway.
"""

from __future__ import annotations

import csv
import io
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import psutil
import requests

from pipelines.config.loading import load_config
from pipelines.execution.environment import set_environment
from tests.benchmarks.support.command_line import benchmark_parser

if TYPE_CHECKING:
    from model.painting.painter import RequestPainter

_REPOSITORY = Path(__file__).resolve().parents[2]
_SUBJECT = _REPOSITORY / "docs" / "subject.png"
_FORM = {"word": "mug", "prompt": "a photo of a mug in the snow"}
_BATCH = 8
_DEADLINE = 10.0  # seconds
_REPEATS = 12
_REQUESTS = 6  # of each of the clients whose speed together is measured
_LEAVING = 200


@dataclass
class Server:
    """A running server.

    Attributes:
        address: With the port.
        process: Of the command.
    """

    address: str
    process: subprocess.Popen[str]

    def ask(self, seed: int = 0, timeout: float = 60, **fields: Any) -> requests.Response:
        """A picture from `/generate`.

        Raises:
            requests.RequestException: There is none.
        """
        files = {"subject": ("mug.png", _SUBJECT.read_bytes(), "image/png")}
        data = {**_FORM, "seed": seed, **fields}
        answer = requests.post(f"{self.address}/generate", data=data, files=files, timeout=timeout)
        answer.raise_for_status()
        return answer

    def metric(self, name: str) -> float:
        """A metric without labels."""
        text = requests.get(f"{self.address}/metrics", timeout=10).text
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def memory(self) -> dict[str, float]:
        """Megabytes of the front and the painters."""
        found: dict[str, float] = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            title = " ".join(process.cmdline())
            for part in ("Front", "Painter"):
                if f":{part}" in title:
                    found[part] = found.get(part, 0.0) + process.memory_info().rss / 1e6
        return found


@contextmanager
def served() -> Iterator[Server]:
    """The command `serve` with the model that ships."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "serve.port": port,
            "serve.max_batch_size": _BATCH,
            "serve.max_queued_requests": 2 * _BATCH,
            "serve.timeout_seconds": _DEADLINE,
        }
        command = [sys.executable, str(_REPOSITORY / "pipeline.py"), "serve"]
        command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "curl" in line:
                    break
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield Server(f"http://127.0.0.1:{port}", process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def direct_painter() -> RequestPainter:
    """The same model in this process, in the server's environment: OpenMP reads it when torch is imported."""
    from model.micro_sd.shipped_adapter import find_shipped_model
    from model.painting.painter import RequestPainter

    shipped, config = find_shipped_model(), load_config("micro")
    return RequestPainter(
        pipeline=shipped.load(), settings=config.inference, title=shipped.title, adapter=shipped.fingerprint
    )


def paint_directly(painter: RequestPainter, pictures: int = 1) -> None:
    """Paint as many pictures together as the server would."""
    subject = {"picture": _SUBJECT.read_bytes(), "word": _FORM["word"]}
    painter.paint(painter.prepare(_FORM["prompt"], [subject], range(pictures)).pictures)


def seconds_of(work: Callable[[], Any]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def first_preview_share(server: Server) -> float:
    """The time of a stream's first preview over that of its picture."""
    body = {"prompt": "a photo of a [mug] in the snow", "stream": "true", "partial_images": "3", "seed": "0"}
    files = {"image": ("mug.png", _SUBJECT.read_bytes(), "image/png")}
    start, times = time.perf_counter(), []
    with requests.post(f"{server.address}/v1/images/edits", data=body, files=files, stream=True, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith(b"event:"):
                times.append(time.perf_counter() - start)
    return times[0] / times[-1]


def direct_speeds(painter: RequestPainter) -> dict[int, float]:
    """Pictures a second by the number that is painted together."""
    found = {}
    for count in (1, 2, 4, 8):
        start = time.perf_counter()
        paint_directly(painter, count)
        found[count] = count / (time.perf_counter() - start)
    return found


def speed_together(server: Server) -> float:
    """Pictures a second of as many clients as the batch has places."""
    requests = _REQUESTS * _BATCH
    with ThreadPoolExecutor(_BATCH) as pool:
        return requests / seconds_of(lambda: list(pool.map(server.ask, range(requests))))


def measure_speed(server: Server) -> float:
    """Print the speed; returns the pictures a second of eight clients."""
    painter = direct_painter()
    server.ask()
    paint_directly(painter)
    ratios = [seconds_of(server.ask) / seconds_of(lambda: paint_directly(painter)) for _ in range(_REPEATS)]
    print(f"a request over a direct call: {statistics.median(ratios):.3f} (median of {_REPEATS}, alternating)")
    shares = [first_preview_share(server) for _ in range(5)]
    print(f"first preview over the whole: {statistics.median(shares):.2f}")
    runs = [(direct_speeds(painter), speed_together(server)) for _ in range(4)]
    best = {count: statistics.median(direct[count] for direct, _ in runs) for count in runs[0][0]}
    speed = statistics.median(together for _, together in runs)
    print("direct pictures a second by batch: " + ", ".join(f"{count}: {value:.2f}" for count, value in best.items()))
    print(f"eight clients: {speed:.2f} pictures a second, {speed / max(best.values()):.2f} of the best direct batch")
    return speed


def measure_disconnects(server: Server) -> None:
    """Print what clients that leave cost."""
    alone = statistics.median(seconds_of(server.ask) for _ in range(3))
    before = server.metric("realword_pictures_total")

    def leave(number: int) -> None:
        wait = random.Random(number).uniform(0.05, 1) * alone
        with suppress(requests.RequestException):
            server.ask(number, timeout=wait)

    with ThreadPoolExecutor(_BATCH) as pool:
        seconds = seconds_of(lambda: list(pool.map(leave, range(_LEAVING))))
    painted = server.metric("realword_pictures_total") - before

    def wait_until_idle() -> None:
        while server.metric("realword_requests_painting"):
            time.sleep(0.05)

    idle = seconds_of(wait_until_idle)
    print(
        f"{_LEAVING} clients left in {seconds:.0f} s; {painted:.0f} pictures were painted, and none after {idle:.2f} s"
    )
    again = statistics.median(seconds_of(server.ask) for _ in range(3))
    print(f"a request afterwards over one before: {again / alone:.2f}")


@dataclass
class Load:
    """What happened under load.

    Attributes:
        statuses: Number of answers by status.
        accepted: Seconds of those with a picture.
        refused: Seconds of the others.
        memory: Seconds since the beginning, with the megabytes of front and painters.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    memory: list[tuple[float, dict[str, float]]] = field(default_factory=list)


def multipart_body() -> tuple[bytes, str]:
    """A request's body with its content type."""
    files = {"subject": ("mug.png", _SUBJECT.read_bytes(), "image/png")}
    prepared = requests.Request("POST", "http://localhost", data=_FORM, files=files).prepare()
    assert isinstance(prepared.body, bytes)
    return prepared.body, str(prepared.headers["Content-Type"])


def measure_load(server: Server, speed: float, minutes: float) -> Load:
    """Let `hey` send twice as many requests as the server can paint."""
    body, content_type = multipart_body()
    clients = max(4 * _BATCH, round(2 * speed * _DEADLINE))
    load, start = Load(), time.monotonic()
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = ["hey", "-z", f"{round(60 * minutes)}s", "-c", str(clients), "-q", f"{2 * speed / clients:.4f}"]
        command += [
            "-m",
            "POST",
            "-T",
            content_type,
            "-D",
            file.name,
            "-t",
            "60",
            "-o",
            "csv",
            f"{server.address}/generate",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        reader = ThreadPoolExecutor(1).submit(process.communicate)
        while not reader.done():
            load.memory.append((time.monotonic() - start, server.memory()))
            time.sleep(1)
        rows = list(csv.DictReader(io.StringIO(reader.result()[0])))
    for row in rows:
        status, seconds = int(row["status-code"]), float(row["response-time"])
        load.statuses[status] += 1
        (load.accepted if status == 200 else load.refused).append(seconds)
    return load


def show_load(load: Load, speed: float, minutes: float, plot: Path | None) -> None:
    """Print the figures, and draw the memory."""
    statuses = ", ".join(f"{count} of {status}" for status, count in sorted(load.statuses.items()))
    print(f"{minutes:g} minutes at {2 * speed:.2f} requests a second, answers by status: {statuses}")
    print(f"accepted: {_times(load.accepted)}; the deadline is {_DEADLINE:g} s")
    print(f"refused: {_times(load.refused)}")
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for part in ("Front", "Painter"):
        times = [(seconds / 60, sizes[part]) for seconds, sizes in load.memory if part in sizes]
        warm = [size for at, size in times if at > 0.2 * times[-1][0]]
        print(f"{part}: {warm[0]:.0f} MB after a fifth of the time, {warm[-1]:.0f} at the end, {max(warm):.0f} at most")
        axes.plot(*zip(*times, strict=True), label=part)
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None), title="At twice the capacity")
    axes.legend()
    if plot is not None:
        figure.savefig(plot, dpi=110)


def _times(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    ordered = sorted(seconds)
    return f"median {statistics.median(ordered):.3f} s, p99 {ordered[int(0.99 * len(ordered))]:.3f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=0.0, help="of load; 0: none")
    parser.add_argument("--plot", type=Path, help="of the memory under load")
    options = parser.parse_args(arguments)
    if options.minutes and shutil.which("hey") is None:
        sys.exit("--minutes needs hey: apt-get install hey.")
    set_environment("micro")
    with served() as server:
        speed = measure_speed(server)
        measure_disconnects(server)
        if options.minutes:
            show_load(measure_load(server, speed, options.minutes), speed, options.minutes, options.plot)


if __name__ == "__main__":
    main()
