from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import fingerprint
from pipelines.errors import PipelineError
from pipelines.graph import Graph
from pipelines.plan import Action, make_plan
from pipelines.store.store import Output, Store
from tests.support.toy_pipeline import SOURCES, EventRecorder, run_graph, toy_graph

pytestmark = pytest.mark.slow


def would_run(graph: Graph, *forced: str) -> dict[str, str]:
    plan = make_plan(graph, Store.at(graph.config.run.folder), graph.order, forced)
    return {step.stage.name: step.why for step in plan if step.action is Action.RUN}


def test_runs_everything_once(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path, "ingest.image_size=12")
    assert would_run(graph) == dict.fromkeys(graph.order, "never ran")
    outputs, recorder = run_graph(graph)
    assert sorted(recorder.of("finished")) == sorted(graph.order)
    assert pq.read_table(outputs["filter"].folder / "samples")["number"].to_pylist() == list(range(5, 12))
    assert (outputs["curriculum"].folder / "plan.txt").read_text() == "filter multiview"
    assert ("ingest", {"event": "progress", "done": 12, "total": 12, "note": "counting"}) in recorder.events
    assert would_run(graph) == {}
    assert run_graph(graph)[1].calls == []


def test_a_changed_setting_runs_exactly_what_depends_on_it(tmp_path: Path) -> None:
    run_graph(toy_graph(tmp_path))
    graph = toy_graph(tmp_path, "filter.min_aesthetic=6.0", "filter.min_side=null")
    assert would_run(graph) == {
        "filter": "config changed: filter.min_aesthetic 5.0 -> 6.0, filter.min_side 48 -> null",
        "curriculum": "input filter changed",
    }
    outputs, recorder = run_graph(graph)
    assert recorder.of("finished") == ["filter", "curriculum"]
    assert pq.read_table(outputs["filter"].folder / "samples")["number"].to_pylist() == list(range(6, 64))
    assert would_run(toy_graph(tmp_path)) == {}, "the earlier outputs are still there"


def test_a_sample_is_read_before_the_commit_deletes_it(tmp_path: Path) -> None:
    source = """
from stages.contract import StageResult


def run(context):
    sample, missing = context.scratch / "sample.png", context.scratch / "missing.png"
    sample.write_bytes(b"a picture")
    context.report.sample("samples", sample, 3)
    context.report.sample("samples", missing, 4)
    return StageResult()
"""
    events = [
        event for name, event in run_graph(toy_graph(tmp_path, multiview=source))[1].events if name == "multiview"
    ]
    assert [event.get("content") for event in events] == [b"a picture", None]
    assert events[1]["event"] == "warning"
    assert "missing.png" in events[1]["text"]


def test_a_stage_gets_its_last_output(tmp_path: Path) -> None:
    source = """
from stages.contract import StageResult


def run(context):
    return StageResult(notes={"previous": str(context.previous)})
"""
    first = run_graph(toy_graph(tmp_path, multiview=source))[0]["multiview"]
    assert first.manifest.notes == {"previous": "None"}
    changed = toy_graph(tmp_path, "multiview.pairs_per_instance=3")
    second = run_graph(changed)[0]["multiview"]
    assert second.manifest.notes == {"previous": str(first.folder)}
    forced = run_graph(changed, "multiview")[0]["multiview"]
    assert forced.manifest.notes == {"previous": str(second.folder)}


def test_changed_code_and_seed_and_force_are_reasons(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path)
    run_graph(graph)
    assert would_run(graph, "multiview") == {"multiview": "forced"}
    seeded = would_run(toy_graph(tmp_path, "run.seed=2"))
    assert seeded["multiview"] == "config changed: run.seed 0 -> 2"
    assert seeded["filter"] == "config changed: run.seed 0 -> 2; input ingest changed"
    fingerprint._tree.cache_clear()
    fingerprint._tree_digest.cache_clear()
    (graph.root / "toys" / "arithmetic.py").write_text(SOURCES["arithmetic"].replace(">=", ">"))
    assert would_run(graph)["filter"] == "code changed"


def test_only_the_goal_and_what_it_needs_runs(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path)
    plan = make_plan(graph, Store.at(graph.config.run.folder), ["filter"])
    assert [step.stage.name for step in plan] == ["ingest", "filter"]


def test_a_forced_stage_runs_alone(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path)
    before, _ = run_graph(graph)
    created = before["filter"].manifest.created
    after, recorder = run_graph(graph, "filter")
    assert recorder.of("finished") == ["filter"]
    assert after["filter"].fingerprint == before["filter"].fingerprint
    assert not before["filter"].folder.exists()
    assert after["filter"].manifest.created > created


FAILING = {
    "raise StageError('No sample is left: aesthetic took 3.')": "Stage filter: No sample is left: aesthetic took 3.",
    "raise ValueError('two\\nlines')": "Stage filter: ValueError: two",
    "os.kill(os.getpid(), 9)": "Stage filter was killed by SIGKILL; the machine may have run out of memory; its log is",
    "os._exit(3)": "Stage filter ended with exit code 3 and without a result; its log is",
    "return 3": "Stage filter: TypeError: toys.filter.run returned int, not a StageResult",
    "raise OSError(28, 'No space left on device')": "Cannot write in the run folder",
}


@pytest.mark.parametrize("line", FAILING)
def test_a_failure_is_one_sentence_and_leaves_the_rest_whole(tmp_path: Path, line: str) -> None:
    code = f"import os\nfrom stages.contract import StageError\n\ndef run(context):\n    {line}\n"
    graph = toy_graph(tmp_path, filter=code)
    recorder = EventRecorder()
    with pytest.raises(PipelineError) as caught:
        run_graph(graph, recorder=recorder)
    assert FAILING[line] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert recorder.of("failed") == ["filter"]
    assert set(recorder.of("finished")) == {"ingest", "multiview"}, "what was running has finished"
    assert set(would_run(graph)) == {"filter", "curriculum"}
    _, recorder = run_graph(toy_graph(tmp_path, filter=SOURCES["filter"]))
    assert recorder.of("finished") == ["filter", "curriculum"]


def test_an_unexpected_failure_has_its_traceback_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        run_graph(toy_graph(tmp_path, filter="def run(context):\n    print('so far so good')\n    1 / 0\n"))
    log = tmp_path / "run" / "logs" / "filter.log"
    assert (
        str(caught.value)
        == f"Stage filter: ZeroDivisionError: division by zero (unexpected; the traceback is in {log})"
    )
    assert "so far so good" in log.read_text()
    assert "Traceback" in log.read_text()


def test_a_damaged_input_is_found_before_it_is_used(tmp_path: Path) -> None:
    outputs, _ = run_graph(toy_graph(tmp_path))
    part = outputs["ingest"].folder / "samples" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))
    with pytest.raises(PipelineError, match=r"the checksum of samples/part-00000\.parquet .* with --force ingest\.$"):
        run_graph(toy_graph(tmp_path, "filter.min_aesthetic=7"))
    run_graph(toy_graph(tmp_path, "filter.min_aesthetic=7"), "ingest")


def test_the_plan_reports_a_missing_file(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path)
    outputs, _ = run_graph(graph)
    (outputs["multiview"].folder / "pairs.txt").unlink()
    plan = make_plan(graph, Store(tmp_path / "run"), graph.order)
    refused = [step for step in plan if step.action is Action.REFUSE]
    assert [step.stage.name for step in refused] == ["multiview"]
    assert "pairs.txt is missing; rebuild it with --force multiview." in refused[0].why


SIDE_BY_SIDE = """
import time
from stages.contract import StageResult

def run(context):
    mark = context.scratch.parents[2] / "{mine}.mark"
    mark.write_text("")
    deadline = time.monotonic() + 60
    while not mark.with_name("{other}.mark").exists():
        assert time.monotonic() < deadline, "the other stage does not run"
        time.sleep(0.05)
    return StageResult()
"""


def test_independent_stages_run_side_by_side(tmp_path: Path) -> None:
    sources = {
        "ingest": SIDE_BY_SIDE.format(mine="ingest", other="multiview"),
        "multiview": SIDE_BY_SIDE.format(mine="multiview", other="ingest"),
        "filter": "from stages.contract import StageResult\ndef run(context):\n    return StageResult()\n",
    }
    assert len(run_graph(toy_graph(tmp_path, **sources))[0]) == 4


def test_one_cpu_runs_one_stage_at_a_time(tmp_path: Path) -> None:
    _, recorder = run_graph(toy_graph(tmp_path), cpus=1)
    assert [call for call, _ in recorder.calls] == ["started", "finished"] * 4


def test_a_stopped_run_is_continued_later(tmp_path: Path) -> None:
    slow = """
import os, subprocess, sys, time
from stages.contract import StageResult

def run(context):
    done = context.scratch / "done"
    if not done.exists():
        done.write_text("half")
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        context.report.progress(os.getpid(), child.pid, "asleep")
        time.sleep(600)
    (context.output / "found.txt").write_text(done.read_text())
    return StageResult()
"""
    graph, processes = toy_graph(tmp_path, filter=slow), []

    def interrupt(name: str, event: Mapping[str, Any]) -> None:
        if event.get("note") == "asleep":
            processes.extend([event["done"], event["total"]])
            raise KeyboardInterrupt

    recorder = EventRecorder(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_graph(graph, recorder=recorder)
    assert ("failed", "filter") in recorder.calls
    assert any(name == "filter" and "stopping" in event.get("text", "") for name, event in recorder.events)
    wait_until(lambda: not any(Path("/proc", str(process)).exists() for process in processes))
    assert would_run(graph)["filter"] == "interrupted; goes on from there"
    outputs, _ = run_graph(graph)
    assert (outputs["filter"].folder / "found.txt").read_text() == "half"


def test_a_killed_runner_leaves_no_process(tmp_path: Path) -> None:
    note = tmp_path / "processes"
    slow = f"""
import os, pathlib, subprocess, sys, time

def run(context):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path({str(note)!r}).write_text(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(600)
"""
    toy_graph(tmp_path, filter=slow)
    code = "import sys, pathlib, tests.support.toy_pipeline as t; t.run_graph(t.toy_graph(pathlib.Path(sys.argv[1])))"
    runner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    wait_until(lambda: note.exists() and len(note.read_text().split()) == 2)
    runner.kill()
    runner.wait()
    wait_until(lambda: not any(Path("/proc", process).exists() for process in note.read_text().split()))
    assert would_run(toy_graph(tmp_path))["filter"] == "interrupted; goes on from there"


def test_a_second_stop_does_not_wait(tmp_path: Path) -> None:
    note = tmp_path / "note"
    stubborn = f"""
import os, pathlib, signal, time

def run(context):
    note = pathlib.Path({str(note)!r})
    signal.signal(signal.SIGTERM, lambda *_: note.write_text("stopping"))
    note.write_text(str(os.getpid()))
    time.sleep(600)
    time.sleep(600)
"""
    toy_graph(tmp_path, filter=stubborn)
    code = "import sys, pathlib, tests.support.toy_pipeline as t; t.run_graph(t.toy_graph(pathlib.Path(sys.argv[1])))"
    runner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background of a shell
    )
    wait_until(lambda: note.exists() and note.read_text().isdigit())
    stage = Path("/proc", note.read_text())
    runner.send_signal(signal.SIGINT)
    wait_until(lambda: note.read_text() == "stopping")
    time.sleep(1)
    assert stage.exists(), "the first one waits"
    runner.send_signal(signal.SIGINT)
    assert runner.wait(timeout=20) != 0
    wait_until(lambda: not stage.exists(), seconds=20)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_folder_in_an_object_store(tmp_path: Path, bucket: str) -> None:
    folder = f"run.folder={bucket}/run"
    graph = toy_graph(tmp_path, folder)
    run_graph(toy_graph(tmp_path))
    outputs, _ = run_graph(graph)
    store = Store.at(graph.config.run.folder)
    for name, output in outputs.items():
        on_disk = Store(tmp_path / "run").latest_outputs()[name]
        assert contents(output) == contents(on_disk)
        assert output.manifest.datasets == on_disk.manifest.datasets
        assert output.damage(thorough=True) is None
        assert (store.folder / "logs" / f"{name}.log").is_file()
    assert run_graph(graph)[1].calls == []
    assert run_graph(graph, "filter")[1].of("finished") == ["filter"]
    (outputs["ingest"].folder / "samples" / "part-00000.parquet").unlink()
    with pytest.raises(PipelineError, match=r"part-00000\.parquet is missing"):
        run_graph(toy_graph(tmp_path, folder, "filter.min_aesthetic=7"))
    assert not list(store.folder.glob("stages/*/*.scratch")), "it was found before the stage began"


def contents(output: Output) -> dict[str, bytes]:
    """The content of each file but the manifest."""
    names = output.manifest.files
    return {name: (output.folder / name).read_bytes() for name in names}
