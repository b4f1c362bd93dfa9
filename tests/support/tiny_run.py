"""A tiny run of the profile micro, in the processes that a user would start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]

#: A loopback port other than the default one, which another run on this machine may use.
TINY: dict[str, Any] = {
    "microworld.port": 8974,
    "microworld.pictures": 120,
    "microworld.multiview_instances": 8,
    "microworld.views": 4,
    "ingest.samples_per_shard": 20,
    "curriculum.steps": 24,
    "curriculum.batch_size": 4,
    "train_adapter.noises_per_example": 1,
    "train_adapter.trainer.checkpoint_every": 4,
    "prompts.prompts_per_concept": 20,
    "contextualizer.steps": 4,
    "contextualizer.batch_size": 8,
    "contextualizer.trainer.workers": 1,
    "customize.words": ["mug"],
    "customize.steps": 3,
    "customize.scoring.prompts": 2,
    "customize.scoring.steps": 2,
    "evaluate.workers": 1,
    "evaluate.subjects": 2,
    "evaluate.prompts_per_subject": 1,
    "evaluate.pairs": 1,
    "evaluate.mask_subjects": 1,
    "evaluate.mask_scenes": 2,
    "inference.steps": 3,
    "inference.mask_steps": 2,
}


def command(folder: Path, *words: str, name: str = "run") -> list[str]:
    """The command line of a tiny run in `folder`."""
    settings = [f"--set={key}={value}" for key, value in {"run.folder": folder, **TINY}.items()]
    return [sys.executable, "pipeline.py", name, *settings, *words]


def run(folder: Path, *words: str, name: str = "run") -> str:
    """Run a command; returns what it printed."""
    found = subprocess.run(command(folder, *words, name=name), cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr}"
    return found.stdout


class StartedRun:
    """A running command, to be stopped before its end."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._folder, self._printed = folder, folder.with_suffix(".out")
        for events in folder.glob("logs/*.events.jsonl"):  # of an earlier command
            events.unlink()
        with self._printed.open("w") as out:
            self._runner = subprocess.Popen(
                command(folder, *words),
                cwd=REPOSITORY,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background of a shell
            )

    def wait_for(self, stage: str, done: int, seconds: float = 600) -> None:
        """Wait until `stage` has reported progress of at least `done`."""
        deadline = time.monotonic() + seconds
        while not _reported(self._folder / "logs" / f"{stage}.events.jsonl", done):
            assert self._runner.poll() is None, f"the run ended before it was killed: {self._printed.read_text()}"
            assert time.monotonic() < deadline, f"stage {stage} did not reach {done}: {self._printed.read_text()}"
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal, SIGINT to the whole process group as a terminal does; returns the exit code and the output.

        No process may be left.
        """
        family = psutil.Process(self._runner.pid).children(recursive=True)
        (os.killpg if number is signal.SIGINT else os.kill)(self._runner.pid, number)
        self._runner.wait(timeout=200)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, f"left behind: {alive}"
        return self._runner.returncode, self._printed.read_text()


def _reported(events: Path, done: int) -> bool:
    if not events.exists():
        return False
    lines = events.read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return any(event["event"] == "progress" and event["done"] >= done for event in found)
