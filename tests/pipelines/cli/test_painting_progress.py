"""What `generate` shows while it works."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import pipeline
from pipelines.cli.painting_progress import painting_progress
from pipelines.store.store import Output


def test_lines_go_to_standard_error_from_time_to_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 4))  # seconds
    monkeypatch.setattr("pipelines.cli.painting_progress.time.monotonic", lambda: float(next(clock)))
    with painting_progress(Console(file=io.StringIO())) as progress:
        progress.show("loading the backbone")
        for step in range(1, 8):
            progress.show("painting, steps", step, 7)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "loading the backbone",
        *(f"painting, steps: {step} of 7" for step in (1, 4, 7)),
    ]


def test_a_terminal_has_one_line_that_is_gone_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    with painting_progress(Console(file=screen, force_terminal=True, width=100)) as progress:
        progress.show("loading the [backbone]")
        progress.show("painting, steps", 3, 50)
    drawn = screen.getvalue()
    assert "painting, steps" in drawn
    assert "3/50" in drawn
    assert drawn.endswith(("\x1b[2K", "\x1b[1A\x1b[2K", "\x1b[?25h")), "erased"
    assert capsys.readouterr() == ("", "")


def test_generate_says_what_it_loads_and_which_step_it_takes(
    trained: Output, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"run.folder={trained.folder.parents[2]}"
    words = ["--subject", str(subject), "--word", "cat", "--prompt", "a cat in it", "--steps", "2"]
    assert pipeline.main(["generate", "--set", folder, *words]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[:6] == [
        "verifying the weights",
        "loading the backbone",
        "loading the image encoders",
        "loading the adapter",
        "encoding the prompt and the subjects",
        "painting, steps: 1 of 2",
    ]
    assert all(Path(line).is_file() for line in printed.out.splitlines())
