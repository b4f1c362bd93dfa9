"""The stages, and how they depend on one another.

    microworld ─> ingest ─> filter ────┐
            └───> multiview ───────────┴> curriculum ─> train_adapter ─┐
    base ────────────────────────────────────────────────^─────────────┼─> evaluate ─> register ─> (serve)
    prompts ─> contextualizer ─> customize ────────────────────────────┘

`cache_latents`, between curriculum and train_adapter, is there when `cache_latents.enabled` is set.
A stage that runs on the user's own data does not read the microworld, and a backbone from elsewhere needs no `base`:
the edges depend on the configuration. `serve` is a command, not a stage: it makes no output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

from pipelines.config.loading import nearest
from pipelines.errors import UsageError
from stages.config import Config

REPOSITORY = Path(__file__).resolve().parent.parent

#: Read by everything that is trained.
_DEEPSPEED = "infra/deepspeed/*.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: what it reads, and what its output depends on.

    Attributes:
        name: Its name on the command line and of its output folder.
        module: The module whose `run(context)` is the stage.
        inputs: The stages whose outputs it reads, for a configuration.
        sections: The sections of the configuration that it reads itself.
        files: Files and folders from outside that it reads, for a configuration (absolute paths).
        data: Files of the project, other than Python modules, that its output depends on: glob patterns.
        cpus: CPUs that it keeps busy; stages run side by side as long as there are enough.
    """

    name: str
    module: str
    inputs: Callable[[Config], list[str]] = lambda config: []
    sections: tuple[str, ...] = ()
    files: Callable[[Config], list[str | None]] = lambda config: []
    data: tuple[str, ...] = ()
    cpus: Callable[[Config], int] = lambda config: 1


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
            UsageError: There is none; names the nearest and lists all.
        """
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


def _unless(given: str | None, *names: str) -> list[str]:
    """The stages that stand in for what the user has not given."""
    return [] if given is not None else list(names)


def _base(config: Config) -> list[str]:
    return _unless(config.backbone.weights, "base")


def _ingest(config: Config) -> list[str]:
    return _unless(config.filter.pictures_folder, "ingest")


def _cache_latents(config: Config) -> list[str]:
    return ["cache_latents"] if config.cache_latents.enabled else []


STAGES = (
    Stage(name="microworld", module="stages.microworld.stage", sections=("microworld",)),
    Stage(
        name="ingest",
        module="stages.ingest.stage",
        inputs=lambda config: _unless(config.ingest.metadata, "microworld"),
        sections=("ingest",),
        files=lambda config: [config.ingest.metadata],
    ),
    Stage(
        name="filter",
        module="stages.filter.stage",
        inputs=_ingest,
        sections=("filter",),
        files=lambda config: [
            config.filter.pictures_folder,
            config.filter.scoring.similarity_clip,
            config.filter.scoring.aesthetic_clip,
            config.filter.scoring.aesthetic_head,
            config.filter.scoring.safety_checker,
        ],
        data=("model/micro_sd/weights/clip/*", "model/micro_sd/weights/tokenizer/*"),
    ),
    Stage(
        name="multiview",
        module="stages.multiview.stage",
        inputs=lambda config: [] if config.multiview.folders else ["microworld"],
        sections=("multiview",),
        files=lambda config: list(config.multiview.folders),
    ),
    Stage(
        name="curriculum",
        module="stages.curriculum.stage",
        inputs=lambda config: ["filter", "multiview"],
        sections=("curriculum",),
    ),
    Stage(name="prompts", module="stages.prompts.stage", sections=("prompts",), data=("prompts/**/*",)),
    Stage(
        name="base",
        module="stages.base.stage",
        sections=("base",),
        data=("model/micro_sd/weights/**/*", _DEEPSPEED),
    ),
    Stage(
        name="cache_latents",
        module="stages.cache_latents.stage",
        inputs=lambda config: ["filter", "multiview", "curriculum", *_base(config)],
        sections=("cache_latents", "backbone"),
        files=lambda config: [config.backbone.weights],
        cpus=lambda config: config.cache_latents.actors,
    ),
    Stage(
        name="train_adapter",
        module="stages.train_adapter.stage",
        inputs=lambda config: ["filter", "multiview", "curriculum", *_base(config), *_cache_latents(config)],
        sections=("train_adapter", "backbone"),
        files=lambda config: [config.backbone.weights],
        data=(_DEEPSPEED,),
        cpus=lambda config: config.train_adapter.trainer.workers,
    ),
    Stage(
        name="contextualizer",
        module="stages.contextualizer.stage",
        inputs=lambda config: ["prompts", *_base(config)],
        sections=("contextualizer", "backbone"),
        files=lambda config: [config.backbone.weights],
        data=(_DEEPSPEED,),
        cpus=lambda config: config.contextualizer.trainer.workers,
    ),
    Stage(
        name="customize",
        module="stages.customize.stage",
        inputs=lambda config: [
            "contextualizer",
            *_base(config),
            *_unless(config.customize.subject, "microworld"),
        ],
        sections=("customize", "backbone", "inference"),
        files=lambda config: [config.customize.subject, config.backbone.weights],
        cpus=lambda config: 2,
    ),
    Stage(
        name="evaluate",
        module="stages.evaluate.stage",
        inputs=lambda config: [
            "train_adapter",
            "customize",
            *_base(config),
            *_unless(config.evaluate.subjects_folder, "microworld"),
            *(*_ingest(config), "filter", "curriculum", "prompts"),  # the report tells of them
        ],
        sections=("evaluate", "customize", "backbone", "inference"),
        files=lambda config: [config.evaluate.subjects_folder, config.backbone.weights],
        data=("stages/evaluate/**/*",),
        cpus=lambda config: config.evaluate.workers,
    ),
    Stage(
        name="register",
        module="stages.register.stage",
        inputs=lambda config: ["train_adapter", "evaluate", *_base(config)],
        sections=("register", "backbone", "inference"),
        files=lambda config: [config.backbone.weights],
    ),
)

#: What `--stage all` makes; everything else is made because one of these needs it.
GOALS = ("register",)
