"""The stages, and how they depend on one another.

    microworld ─> ingest ─> filter ────┐
            └───> multiview ───────────┴> curriculum ─> train_adapter ─┐
    base ────────────────────────────────────────────────^─────────────┼─> evaluate ─> register ─> (serve)
    prompts ─> contextualizer ─> customize ────────────────────────────┘

`cache_latents`, between curriculum and train_adapter, is there when `cache_latents.enabled` is set. Without
concepts (`customize.subjects=[]`) there is no prompts, contextualizer and customize, with `evaluate.subjects=0` no
evaluate.
A stage that runs on the user's own data does not read the microworld, and a backbone from elsewhere needs no `base`:
the edges depend on the configuration. `serve` is a command, not a stage: it makes no output.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

from pipelines.config.keys import nearest
from pipelines.errors import UsageError
from stages.config import Config
from stages.declaration import Stage

REPOSITORY = Path(__file__).resolve().parent.parent

#: Each has a `STAGE` in `stages/<name>/declaration.py`.
STAGE_NAMES = (
    "microworld",
    "ingest",
    "filter",
    "multiview",
    "curriculum",
    "prompts",
    "base",
    "cache_latents",
    "train_adapter",
    "contextualizer",
    "customize",
    "evaluate",
    "register",
)
STAGES: tuple[Stage, ...] = tuple(importlib.import_module(f"stages.{name}.declaration").STAGE for name in STAGE_NAMES)

#: What `--stage all` makes; everything else is made because one of these needs it.
GOALS = ("register",)


@dataclass(frozen=True)
class Graph:
    """The stages of one configuration, each after those whose outputs it reads.

    `root` is the folder that the packages of the stages' code lie in.
    """

    config: Config
    stages: dict[str, Stage]
    root: Path = REPOSITORY
    inputs: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", {name: stage.inputs(self.config) for name, stage in self.stages.items()})

    @property
    def order(self) -> list[str]:
        """The names of the stages, upstream first."""
        return list(self.stages)

    def stage(self, name: str) -> Stage:
        """The stage called `name`.

        Raises:
            UsageError: There is none, or it is not part of this graph; names the nearest and lists all, or says why.
        """
        absent = next((stage for stage in STAGES if stage.name == name and stage.absent_when), None)
        if name not in self.stages and absent is not None:
            raise UsageError(f"Stage {name} is not part of a run with these settings: {absent.absent_when}.")
        if name not in self.stages:
            hint = nearest(name, self.order)
            raise UsageError(f"There is no stage {name!r}.{hint} The stages are {', '.join(self.order)}.")
        return self.stages[name]

    def upstream(self, names: Iterable[str]) -> set[str]:
        """The stages called `names` and everything that they read, directly or not."""
        found: set[str] = set()
        waiting = [self.stage(name).name for name in names]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.inputs[name]
        return found

    def downstream(self, name: str) -> set[str]:
        """The stage called `name` and everything that reads it, directly or not."""
        found = {self.stage(name).name}
        for other in self.order:
            if found & set(self.inputs[other]):
                found.add(other)
        return found


def make_graph(config: Config, stages: Iterable[Stage], goals: Iterable[str], root: Path = REPOSITORY) -> Graph:
    """The graph of `goals` and of what they need, in an order that keeps the one of `stages` where it can."""
    known = {stage.name: stage for stage in stages}
    needed: dict[str, list[str]] = {}
    waiting = list(goals)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed[name] = known[name].inputs(config)
            waiting += needed[name]
    declared = {name: needed[name] for name in known if name in needed}
    order = TopologicalSorter(declared).static_order()
    return Graph(config, {name: known[name] for name in order}, root)


def pipeline_graph(config: Config) -> Graph:
    """The stages of the pipeline for `config`."""
    return make_graph(config, STAGES, GOALS)
