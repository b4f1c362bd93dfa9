"""The commands of `pipeline.py`."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pipelines.cli import messages
from pipelines.cli.announcement import announce
from pipelines.cli.doctor import doctor
from pipelines.cli.job_submission import check_run_folder, submit
from pipelines.cli.manifests import manifests
from pipelines.cli.painting_run import last_run, painting_run
from pipelines.cli.storage import storage
from pipelines.config.loading import chosen_values, config_to_dict, load_config
from pipelines.errors import PipelineError, UsageError
from pipelines.execution.environment import set_environment, temporary_folder
from pipelines.execution.signals import stopped_by_signals
from pipelines.graph import REPOSITORY, Graph, pipeline_graph
from pipelines.plan import Action, Step, blurred_references, check_files, make_plan
from pipelines.store.records import artifact_location, database_file, relocate, unusable_database
from pipelines.store.store import Output, Store
from pipelines.tracking_store import check_registry, configured_uri
from stages.config import Config
from stages.ray_tools.addresses import AddressError, dashboard_of, find_cluster, is_local


def run(arguments: argparse.Namespace) -> None:
    """Run the stages that are not up to date."""
    config = _run_config(arguments)
    if dashboard := dashboard_of(arguments.ray_address):
        set_environment(config.profile, local_ray=False)
        return submit(dashboard, arguments)
    check_run_folder(config.run.folder)
    graph, store = pipeline_graph(config), Store.at(config.run.folder)
    if arguments.dry_run:
        _print_plan(config, _plan(graph, store, arguments))
        return
    with store.locked():
        plan = _plan(graph, store, arguments)
        for step in plan:
            if step.action is Action.REFUSE:
                raise PipelineError(step.why)
        check_files(config, plan)
        check_registry(config, store, plan)
        _warn(config, plan)
        if any(step.action is Action.RUN for step in plan):
            outputs = execute(graph, store, plan, arguments.ray_address)
        else:
            outputs = {step.stage.name: step.output for step in plan if step.output}
            store.write_latest(config_to_dict(config), store.latest_fingerprints() | _fingerprints(outputs))
            if configured_uri(config) is None:
                with _database_errors(store):
                    relocate(database_file(store), artifact_location(store))
            print(f"Everything is up to date ({len(plan)} stages); there is nothing to do.")
    print(messages.next_steps(config, store, outputs, messages.flags(arguments)))


def plan(arguments: argparse.Namespace) -> None:
    """Print what `run` would do, and why."""
    config = _run_config(arguments)
    store = Store.at(config.run.folder)
    _print_plan(config, _plan(pipeline_graph(config), store, arguments))


def status(arguments: argparse.Namespace) -> None:
    """Print the state of each stage of the last run."""
    config, store = last_run(arguments.profile, arguments.settings)
    graph = pipeline_graph(config)
    print(messages.status_table(make_plan(graph, store, graph.order), store))


def report(arguments: argparse.Namespace) -> None:
    """Print the path of the last run's HTML report."""
    _, store = last_run(arguments.profile, arguments.settings)
    output = store.latest_outputs().get("evaluate")
    if output is None:
        command = messages.command("run --stage evaluate", arguments)
        raise PipelineError(f"There is no report in {store.folder} yet; make it with {command}.")
    print(output.folder / messages.REPORT)


def generate(arguments: argparse.Namespace) -> None:
    """Generate pictures of the subjects from a prompt, with their masks; print their paths."""
    config, store, shipped = painting_run(arguments.profile, arguments.settings, "train_adapter")
    set_environment(config.profile)
    from pipelines.cli.generate import Request, generate_picture
    from pipelines.cli.painting_model import model_of_adapter, model_of_run, shipped_model
    from pipelines.cli.painting_progress import painting_progress

    request = Request(
        subjects=arguments.subject,
        words=arguments.word,
        prompt=arguments.prompt,
        seed=arguments.seed,
        steps=arguments.steps,
        settings=chosen_values(arguments.settings, "inference"),
    )
    with store.writable(), painting_progress() as progress:
        progress.show("verifying the weights")
        if config.backbone.adapter is not None:
            model = model_of_adapter(config, config.backbone.adapter)
        else:
            model = shipped_model(store) if shipped else model_of_run(config, store)
        made = generate_picture(model, config, request, arguments.out or store.local_folder / "generated", progress)
    # Not among the paths, which other programs read.
    if made.cut_off:
        print(f"warning: the text encoder does not read the end of the prompt: {made.cut_off!r}", file=sys.stderr)
    print(f"Painted with {model.description}.", file=sys.stderr)
    for file in made.files:
        print(file)


def serve(arguments: argparse.Namespace) -> None:
    """Serve the registered model over HTTP until the user stops it."""
    config, store, shipped = painting_run(arguments.profile, arguments.settings, "register")
    set_environment(config.profile, local_ray=is_local(arguments.ray_address))
    with _stage_errors_as_pipeline_errors():
        cluster = find_cluster(arguments.ray_address)  # before RAY_TMPDIR is another: Ray finds it there
        with temporary_folder(store.local_folder) as temporary:
            from pipelines.served_adapter import served_adapter
            from pipelines.served_registry import served_registry
            from stages.serve.server import run_server

            run_server(
                config,
                served_registry(config, store, temporary),
                shipped=shipped,
                given=served_adapter(config, arguments.settings),
                cluster=cluster,
            )


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "run": run,
    "plan": plan,
    "doctor": doctor,
    "status": status,
    "generate": generate,
    "serve": serve,
    "report": report,
    "storage": storage,
    "manifests": manifests,
}


def execute(graph: Graph, store: Store, plan: Sequence[Step], ray_address: str | None) -> dict[str, Output]:
    """Run the plan, with a Ray cluster, a tracker and a display that end with the run."""
    from pipelines.cli.progress import make_display
    from pipelines.execution.runner import Runner
    from pipelines.execution.stage_job import RunContext
    from pipelines.tracking import Tracker
    from stages.ray_tools.cluster import local_cluster
    from stages.ray_tools.gpus import check_gpus_of_machine
    from stages.ray_tools.preflight import check_cluster

    config = graph.config
    set_environment(config.profile, local_ray=is_local(ray_address))
    with ExitStack() as stack:
        stack.enter_context(_stage_errors_as_pipeline_errors())
        running = find_cluster(ray_address)
        stages = [step.stage.name for step in plan if step.action is Action.RUN]
        if running is None:
            check_gpus_of_machine(config, stages)
        print(announce(config, store, plan))
        stack.enter_context(store.writable())
        stack.enter_context(stopped_by_signals())
        stack.enter_context(temporary_folder(store.local_folder))
        display = stack.enter_context(make_display(plan))
        tracker = stack.enter_context(Tracker(config, store, plan, display.warn))
        if running is None:
            display.set_note("starting Ray")
        tracker.check()
        if running is None:
            address, cores = stack.enter_context(local_cluster()), os.cpu_count() or 1
        else:
            address, (cores, warnings) = running, check_cluster(running, config, stages, store.folder, str(REPOSITORY))
            for warning in warnings:
                display.warn(warning)
        run_context = RunContext(
            graph=graph,
            store=store,
            ray_address=address,
            ray_is_local=running is None,
            tracking_uri=tracker.uri,
        )
        runner = Runner(
            plan=plan,
            run_context=run_context,
            listeners=[display, tracker],
            cpus=config.run.cpus or cores,
        )
        return runner.run()


def _print_plan(config: Config, plan: Sequence[Step]) -> None:
    print(messages.plan_table(plan))
    _warn(config, plan)


def _warn(config: Config, plan: Sequence[Step]) -> None:
    for text in blurred_references(config, plan):
        print(f"warning: {text}", file=sys.stderr)


def _run_config(arguments: argparse.Namespace) -> Config:
    config = load_config(arguments.profile, arguments.settings)
    if config.backbone.adapter is not None:
        raise UsageError(
            "backbone.adapter is an adapter from elsewhere for generate and serve, but a run trains its own; leave it "
            "out."
        )
    return config


def _plan(graph: Graph, store: Store, arguments: argparse.Namespace) -> list[Step]:
    goals = graph.order if arguments.stage == "all" else [arguments.stage]
    needed = graph.upstream(goals)
    for name in [*arguments.force, *([arguments.start] if arguments.start else [])]:
        if graph.stage(name).name not in needed:
            raise UsageError(f"Stage {arguments.stage} does not need {name}, so that it cannot be forced with it.")
    forced = set(arguments.force)
    if arguments.start is not None:
        forced |= graph.downstream(arguments.start) & needed
    return make_plan(graph, store, goals, forced)


def _fingerprints(outputs: dict[str, Output]) -> dict[str, str]:
    return {name: output.fingerprint for name, output in outputs.items()}


@contextmanager
def _stage_errors_as_pipeline_errors() -> Iterator[None]:
    """Turn errors of code in `stages/` into errors of a command; a wrong address is a wrong command line."""
    from stages.contract import StageError

    try:
        yield
    except AddressError as error:
        raise UsageError(str(error)) from error
    except StageError as error:
        raise PipelineError(str(error)) from error


@contextmanager
def _database_errors(store: Store) -> Iterator[None]:
    """Say in one sentence that MLflow's database cannot be used."""
    try:
        yield
    except sqlite3.Error as error:
        raise PipelineError(unusable_database(store, error)) from error
