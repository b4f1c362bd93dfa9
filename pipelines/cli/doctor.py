"""The command `doctor`: a line for each finding, and an exit code that says whether the run would stop."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from pipelines.config.loading import load_config
from pipelines.doctor.examination import examine
from pipelines.doctor.findings import Finding, Level, Setup, counted
from pipelines.errors import PipelineError
from pipelines.execution.environment import set_environment

_SYMBOLS = {Level.GOOD: "\u2713", Level.UNKNOWN: "?", Level.WARNING: "!", Level.PROBLEM: "\u2717"}
_ASCII = {Level.GOOD: "ok", Level.UNKNOWN: "?", Level.WARNING: "!", Level.PROBLEM: "X"}


def doctor(arguments: argparse.Namespace) -> None:
    """Check what would stop the run, and print it all.

    Raises:
        PipelineError: Something would.
    """
    config = load_config(arguments.profile, arguments.settings)
    set_environment(config.profile)
    found = examine(Setup.of(config))
    print("\n".join(lines(found, sys.stdout.encoding if sys.stdout.isatty() else None)))
    counts = {level: sum(one.level is level for findings in found.values() for one in findings) for level in Level}
    if problems := counts[Level.PROBLEM]:
        raise PipelineError(f"the run would stop: {counted(problems, 'problem')}, marked above.")
    warnings = counted(counts[Level.WARNING], "warning")
    print(f"Nothing would stop the run; {warnings}, {counts[Level.UNKNOWN]} unknown.")


def lines(found: Mapping[str, Sequence[Finding]], encoding: str | None) -> list[str]:
    """The findings with their subjects, aligned.

    Args:
        found: By subject.
        encoding: Of the terminal; None: it is none. Without UTF-8 the marks are ASCII.
    """
    symbols = _SYMBOLS if (encoding or "").lower().replace("-", "") == "utf8" else _ASCII
    width, subject_width = max(map(len, symbols.values())), max(map(len, found), default=0)
    return [
        f"{symbols[one.level].ljust(width)} {subject.ljust(subject_width)}  {' '.join(one.text.split())}"
        for subject, findings in found.items()
        for one in findings
    ]
