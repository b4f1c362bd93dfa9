"""All checks, side by side: one that waits for a network or a slow disk holds up no other, and none waits for long."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pipelines.doctor.findings import Check, Finding, Setup, unknown
from pipelines.doctor.models import needed_models

#: After so long a check is left alone; what it has found until then counts.
SECONDS = 40.0

#: The modules of this package with a function `check`, in the order in which their findings are shown.
SUBJECTS = ("versions", "gpus", "memory", "disk", "weights", "data", "prompts", "tracking")


@dataclass
class _Running:
    """A check in a thread of its own. It is a daemon: the command does not wait for it."""

    check: Check
    setup: Setup
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for finding in self.check(self.setup):
                self.findings.append(finding)
        except Exception as error:  # a defect of one check must not hide what the others find
            reason = " ".join(str(error).split())[:300]
            self.findings.append(unknown(f"this could not be checked: {type(error).__name__}: {reason}"))

    def result(self, deadline: float) -> list[Finding]:
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            return [*self.findings, unknown(f"no answer within {SECONDS:g} s; the run itself waits longer")]
        return self.findings


def all_checks() -> dict[str, Check]:
    """The check of each subject."""
    modules = {name: importlib.import_module(f"pipelines.doctor.{name}") for name in SUBJECTS}
    return {name: module.check for name, module in modules.items()}


def _import_libraries(setup: Setup) -> None:
    """Import what checks of models need, before there are threads: transformers and diffusers load their parts on
    demand, and a thread may find one that another has loaded by half.
    """
    with suppress(Exception):  # a check that needs one will say so
        if any(True for _ in needed_models(setup)):
            for name in ("model.adapters.vision_models", "model.methods.registry", "stages.evaluate.cases"):
                importlib.import_module(name)


def examine(setup: Setup, checks: Mapping[str, Check] | None = None) -> dict[str, Sequence[Finding]]:
    """The findings of each subject that has some."""
    _import_libraries(setup)
    running = {name: _Running(check, setup) for name, check in (checks or all_checks()).items()}
    deadline = time.monotonic() + SECONDS
    found = {name: one.result(deadline) for name, one in running.items()}
    return {name: findings for name, findings in found.items() if findings}
