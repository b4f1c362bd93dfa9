"""Four toy stages in their own package, and a function that runs them: in real processes, without Ray and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.config.loading import load_config
from pipelines.errors import PipelineError
from pipelines.execution.runner import Runner
from pipelines.execution.stage_job import RunContext
from pipelines.fingerprint import Ingredients
from pipelines.graph import Graph, make_graph
from pipelines.plan import Step, make_plan
from pipelines.store.manifest import describe_output
from pipelines.store.store import Output, Store, Work
from stages.config import Config
from stages.contract import StageResult
from stages.declaration import Stage

INGREDIENTS = Ingredients(config={"filter.min_side": 3, "run.seed": 0}, inputs={"ingest": "abc"}, files={}, code="c0de")

SOURCES = {
    "__init__": '"""Toys."""\n',
    "arithmetic": """
def keep(number, least):
    return number >= least
""",
    "ingest": """
import pyarrow as pa
import pyarrow.parquet as pq
from stages.contract import StageContext, StageResult
from stages.storage import open_output


def run(context):
    samples = context.output / "samples"
    numbers = list(range(context.config.ingest.image_size))
    context.report.progress(len(numbers), len(numbers), "counting")
    with open_output(samples / "part-00000.parquet") as file:
        pq.write_table(pa.table({"number": numbers}), file)
    return StageResult(rows={"samples": len(numbers)})
""",
    "filter": """
import pyarrow as pa
import pyarrow.parquet as pq
from stages.contract import StageResult
from stages.storage import open_output, parquet_source
from toys.arithmetic import keep


def run(context):
    source = parquet_source(context.inputs["ingest"] / "samples" / "part-00000.parquet")
    numbers = pq.read_table(source)["number"].to_pylist()
    kept = [number for number in numbers if keep(number, context.config.filter.min_aesthetic)]
    with open_output(context.output / "samples" / "part-00000.parquet") as file:
        pq.write_table(pa.table({"number": kept}), file)
    for step, number in enumerate(kept):
        context.report.metric("number", number, step)
    return StageResult(rows={"samples": len(kept)}, metrics={"share": len(kept) / len(numbers)}, notes={"toy": "yes"})
""",
    "multiview": """
from stages.contract import StageResult


def run(context):
    (context.output / "pairs.txt").write_text(str(context.config.run.seed))
    context.report.warning("views are toys")
    return StageResult()
""",
    "curriculum": """
from stages.contract import StageResult


def run(context):
    names = sorted(context.inputs)
    (context.output / "plan.txt").write_text(" ".join(names))
    context.report.picture("plan", context.output / "plan.txt")
    return StageResult()
""",
}

STAGES = (
    Stage(name="ingest", module="toys.ingest", settings=("ingest",)),
    Stage(name="filter", module="toys.filter", settings=("filter",), inputs=lambda config: ["ingest"]),
    Stage(name="multiview", module="toys.multiview", settings=("multiview",)),
    Stage(
        name="curriculum",
        module="toys.curriculum",
        settings=("curriculum",),
        inputs=lambda config: ["filter", "multiview"],
    ),
)


def toy_config(tmp_path: Path, *settings: str) -> Config:
    """The profile micro in a run folder under `tmp_path`."""
    return load_config("micro", [f"run.folder={tmp_path / 'run'}", *settings])


def toy_graph(tmp_path: Path, *settings: str, **sources: str) -> Graph:
    """The graph of the toy stages; `sources` replaces the source text of some modules."""
    package = tmp_path / "code" / "toys"
    package.mkdir(parents=True, exist_ok=True)
    for name, text in SOURCES.items():
        file = package / f"{name}.py"
        if name in sources or not file.exists():
            file.write_text(sources.get(name, text))
    return make_graph(toy_config(tmp_path, *settings), STAGES, ["curriculum"], tmp_path / "code")


class EventRecorder:
    """A listener that keeps all calls and events."""

    def __init__(self, react: Callable[[str, Mapping[str, Any]], None] | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self._react = react

    def stage_started(self, step: Step) -> str | None:
        self.calls.append(("started", step.stage.name))
        return None

    def stage_event(self, name: str, event: Mapping[str, Any]) -> None:
        self.events.append((name, event))
        if self._react:
            self._react(name, event)

    def stage_finished(self, name: str, output: Output) -> None:
        self.calls.append(("finished", name))

    def stage_failed(self, name: str, error: PipelineError) -> None:
        self.calls.append(("failed", name))

    def of(self, what: str) -> list[str]:
        return [name for call, name in self.calls if call == what]


def run_graph(
    graph: Graph, *forced: str, recorder: EventRecorder | None = None, cpus: int = 2
) -> tuple[dict[str, Output], EventRecorder]:
    store = Store.at(graph.config.run.folder)
    recorder = recorder or EventRecorder()
    with store.locked():
        plan = make_plan(graph, store, graph.order, forced)
        run_context = RunContext(graph=graph, store=store, ray_address=None)
        return Runner(plan=plan, run_context=run_context, listeners=[recorder], cpus=cpus).run(), recorder


def commit_stage(
    store: Store,
    name: str,
    result: StageResult,
    ingredients: Ingredients = INGREDIENTS,
    work: Work | None = None,
) -> Output:
    """Commit what is in the output of `work`; an empty one when there is none."""
    work = work or store.begin(name, ingredients.fingerprint, restart=True)
    return store.commit(name, work, describe_output(work.output, name, ingredients, result, 1.5))
