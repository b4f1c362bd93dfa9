"""What the commands print: tables of a plan and of a run, and what to try next."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.plan import Action, Step
from pipelines.store.manifest import Manifest
from pipelines.store.records import EXPERIMENT
from pipelines.store.store import Output, Store
from pipelines.tracking_store import tracking_store
from stages.config import Config
from stages.storage import is_remote
from stages.tracking_uri import is_server

#: Inside the output of `evaluate`.
REPORT = Path("report", "index.html")


def plan_table(plan: Sequence[Step]) -> str:
    """One line for each stage: what would happen to it, and why."""
    rows = [(step.stage.name, step.action.value, step.why) for step in plan]
    count = sum(step.action is Action.RUN for step in plan)
    return "\n".join([*align(rows), f"{count} of {len(plan)} stages would run."])


def status_table(plan: Sequence[Step], store: Store) -> str:
    """One line for each stage: its state, rows, time and output."""
    latest = store.latest_outputs()
    rows = [("stage", "state", "rows", "seconds", "output")]
    for step in plan:
        name, output = step.stage.name, step.output or latest.get(step.stage.name)
        if output is None or step.action is Action.REFUSE:
            rows.append((name, step.why, "", "", ""))
        else:
            manifest = output.manifest
            state = "up to date" if step.action is Action.KEEP else "out of date"
            rows.append((name, state, _rows(manifest), f"{manifest.seconds:.0f}", str(output.folder)))
    return "\n".join([*align(rows), f"{pipeline()} plan says why a stage is out of date."])


def next_steps(config: Config, store: Store, outputs: Mapping[str, Output], flags: str) -> str:
    """The paths of the results, and commands to use them."""
    lines = []
    if "evaluate" in outputs:
        lines.append(f"Report:     {outputs['evaluate'].folder / REPORT}")
    if "register" in outputs:
        registered = json.loads((outputs["register"].folder / "registered.json").read_text())
        champion = "the champion" if registered["alias_moved"] else "not the champion"
        lines.append(f"Registered: {registered['name']} version {registered['version']} ({champion})")
        lines.append(f"Serve it:   {pipeline()} serve{flags}")
    if "train_adapter" in outputs:
        subject, word = example_subject(outputs)
        prompt = shlex.quote(f"a {word} on the grass")
        paint = f"generate{flags} --subject {shlex.quote(subject)} --word {word} --prompt {prompt}"
        lines.append(f"Paint:      {pipeline()} {paint}")
    lines.append(f"Records:    {_records(config, store)}")
    return "\n".join(lines)


def _records(config: Config, store: Store) -> str:
    """The page of the MLflow server, or the command that shows a database's records."""
    place = tracking_store(config, store)
    if place is None:
        return "none, for lack of run.tracking_uri"
    if is_server(place.uri):
        return f"{place} (experiment {EXPERIMENT})"
    return f"{program('mlflow')} ui --backend-store-uri {shlex.quote(str(place))}"


def example_subject(outputs: Mapping[str, Output]) -> tuple[str, str]:
    """A picture of a subject of the run, with its word; an invented one if the run has no microworld."""
    if "microworld" not in outputs:
        return "my_dog.jpg", "dog"
    subjects = outputs["microworld"].folder / "subjects"
    if is_remote(subjects):
        return "docs/subject.png", "mug"  # `generate` takes a file, and the code comes with this one
    entry = json.loads((subjects / "subjects.json").read_text())[0]
    return str(subjects / entry["pictures"][0]), entry["word"]


def flags(arguments: argparse.Namespace) -> str:
    """The flags that another command needs to use the same run folder."""
    kept = [setting for setting in arguments.settings if setting.startswith("run.folder=")]
    profile = [] if arguments.profile == "micro" else ["--profile", arguments.profile]
    words = [*profile, *(word for setting in kept for word in ("--set", setting))]
    return "".join(f" {shlex.quote(word)}" for word in words)


def command(name: str, arguments: argparse.Namespace) -> str:
    """The command line of another command on the same run folder."""
    return f"{pipeline()} {name}{flags(arguments)}"


def pipeline() -> str:
    """The command line of the pipeline in the user's shell."""
    return f"{program('python')} pipeline.py"


def program(name: str) -> str:
    """A program of this Python environment: its name if the environment is active, else its path."""
    path = Path(sys.executable).parent / name
    return name if shutil.which(name) == str(path) else shlex.quote(os.path.relpath(path))


def _rows(manifest: Manifest) -> str:
    return ", ".join(f"{count} {dataset}" for dataset, count in manifest.rows.items())


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
