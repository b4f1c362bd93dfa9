"""Malformed requests against the server: none may end in a server error, or show what only the server should know.

    python -m tests.benchmarks.hostile_requests
    python -m tests.benchmarks.hostile_requests --schemathesis FOLDER/bin/schemathesis

Hardware and time: one core; about five minutes, with Schemathesis fifteen.

The server's application answers on a socket, with a tiny model instead of Ray's painters. It gets hostile pictures
(bombs, truncated ones, files of two formats, other types, thousands of frames), forms and JSON with odd values, and
such with bytes changed or cut off. Schemathesis, a program of its own (`python -m venv FOLDER`,
`FOLDER/bin/pip install schemathesis`), draws requests from `/openapi.json`, valid and invalid ones, and compares the
answers with it. Every answer is read for tracebacks, paths and addresses of memory. Prints the number of answers by
route and status; ends with 1 if there was a server error, a leak, or an answer that is missing.

The check `positive_data_acceptance` is off: JSON schema has no words for "a quality needs webp or jpeg", or for a word
that must be in the prompt.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import requests
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.benchmarks.support.command_line import benchmark_parser
from tests.support.hostile_requests import hostile_requests, random_requests
from tests.support.local_painters import listening, tiny_application
from tests.support.tiny_models import write_sd

_LEAK = re.compile(rb"Traceback|File \"|site-packages|/tmp/|/home/|object at 0x[0-9a-f]{6}")
_SHOWN = 200


@dataclass
class Recorder:
    """An ASGI application that notes the answers of another one.

    Attributes:
        app: It.
        answers: Their number by route and status.
        failures: What must not be, with the request's method and path.
    """

    app: ASGIApp
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, body = 0, b""

        async def send_and_note(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status != 200:
                body += message.get("body", b"")
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            if scope["type"] == "http":
                self.answers[getattr(scope.get("route"), "path", "other"), status] += 1
                if status == 0 or status >= 500 or _LEAK.search(body):
                    self.failures.append(f"{scope['method']} {scope['path']!r}: {status} {body[:_SHOWN]!r}")


def ask_ours(address: str, seed: int, count: int) -> list[str]:
    """Send the requests of `tests.support.hostile_requests`; returns those without an answer."""
    unanswered = []
    with requests.Session() as session:
        for asked in (*hostile_requests().values(), *random_requests(seed, count)):
            try:
                session.request(asked.method, address + asked.path, timeout=120, **asked.options)
            except requests.RequestException as error:
                unanswered.append(f"{asked.method} {asked.path}: {error}")
    return unanswered


def ask_schemathesis(program: Path, address: str, seconds: int, seed: int) -> int:
    """Run Schemathesis; returns its exit code."""
    command = [str(program), "run", f"{address}/openapi.json", "--phases", "examples,coverage,fuzzing"]
    command += ["--max-time", str(seconds), "--seed", str(seed), "--no-color", "--continue-on-failure"]
    command += ["--exclude-checks", "positive_data_acceptance"]
    with tempfile.TemporaryDirectory() as folder:  # it writes a store of examples
        return subprocess.run(command, cwd=folder, check=False).returncode


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--requests", type=int, default=2500, help="drawn by us")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", type=Path, help="the program")
    parser.add_argument("--seconds", type=int, default=600, help="for schemathesis")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(tiny_application(write_sd(Path(folder))))
        with listening(recorder) as address:
            failures = ask_ours(address, arguments.seed, arguments.requests)
            if arguments.schemathesis:
                code = ask_schemathesis(arguments.schemathesis, address, arguments.seconds, arguments.seed)
                failures += [f"schemathesis ended with {code}."] if code else []
    for (route, status), count in sorted(recorder.answers.items()):
        print(f"{count:6d}  {status}  {route}")
    failures += recorder.failures
    print(f"{recorder.answers.total()} answers, {len(failures)} failures", *failures, sep="\n  ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
