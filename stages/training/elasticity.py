"""How many workers a training starts with: as many as it wants, once the cluster has room for them.

A cluster grows and shrinks. A training that finds too little room waits and says so, or goes on with fewer workers
(`min_workers`). Each start asks again, so that a training that has lost a node goes on with what is left, and one that
starts again uses a node that was added. On a local Ray nothing can be added: there it ends in one sentence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from stages.contract import Reporter, StageError
from stages.ray_tools.cluster import nodes_may_join
from stages.ray_tools.placement import cpu_nodes
from stages.training.job import TrainingJob

#: How long a training that may have fewer workers waits for all: a lost machine is often replaced in this time.
PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 2.0
#: A node that does not answer a task in this time is lost, although Ray may not have noticed yet.
_PING_SECONDS = 20.0


def room_for_workers(job: TrainingJob, counts: Sequence[int], section: str, report: Reporter) -> int:
    """Wait until the cluster has room; returns the number of workers to start.

    Args:
        job: The training.
        counts: The numbers of workers that it may have, the largest first.
        section: Of the configuration, for messages.
        report: Gets a line of progress while it waits.

    Raises:
        StageError: A local Ray has no room; or the training was stopped while it waited.
    """
    kind = "GPU" if job.config.use_gpu else "CPU"
    if not nodes_may_join():
        there = room(kind, all_answer)
        check_room(counts, there, kind, section)
        return fitting(counts, there) or counts[0]
    with _requested_from_autoscaler(kind, counts[0]):
        return wait_for_room(
            counts,
            lambda: room(kind, answers),
            lambda there: _say_waiting(job, counts, there, kind, section, report),
            stopped=job.stop_request.exists,
        )


def wait_for_room(
    counts: Sequence[int],
    find_room: Callable[[], int],
    say: Callable[[int], None],
    stopped: Callable[[], bool],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """The largest of `counts` for which there is room: at once for all workers, after `PATIENCE_SECONDS` for fewer.

    Raises:
        StageError: It was stopped.
    """
    begun = clock()
    while True:
        there = find_room()
        count = fitting(counts, there)
        if count == counts[0] or (count is not None and clock() - begun >= PATIENCE_SECONDS):
            return count
        if stopped():
            raise StageError("the training was stopped while it waited for room; the same command goes on.")
        say(there)
        sleep(_POLL_SECONDS)


def fitting(counts: Sequence[int], there: int) -> int | None:
    """The largest number of workers for which there is room; None: there is too little for all."""
    return next((count for count in counts if count <= there), None)


def check_room(counts: Sequence[int], there: int, kind: str, section: str) -> None:
    """Check that a cluster that cannot grow has room, for which Ray would wait for ever.

    Raises:
        StageError: It has not.
    """
    if fitting(counts, there) is not None:
        return
    remedy = f"set compute.workers, for all stages, or {section}.workers to at most {there}"
    if not there:
        remedy = "set compute.use_gpu to false"
    raise StageError(
        f"{section}.workers={counts[0]} needs {counts[-1]} {kind}s, but Ray has {there}: {remedy}, or use a larger "
        "cluster."
    )


def room(kind: str, answering: Callable[[list[str]], set[str]]) -> int:
    """The CPUs or GPUs of the nodes on which a training may run and which are `answering`."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]] if kind == "GPU" else cpu_nodes(ray.nodes())
    usable = {node["NodeID"]: int(node["Resources"].get(kind, 0)) for node in nodes if node["Resources"].get(kind)}
    return sum(usable[node] for node in answering(list(usable)))


def all_answer(nodes: list[str]) -> set[str]:
    """The nodes of a cluster that is one machine."""
    return set(nodes)


def answers(nodes: list[str]) -> set[str]:
    """The nodes that run a task: Ray notices a lost node only after a while."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ping = ray.remote(num_cpus=0, max_retries=0)(lambda: None)
    sent = {
        ping.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): node
        for node in nodes
    }
    done, waiting = ray.wait(list(sent), num_returns=len(sent), timeout=_PING_SECONDS) if sent else ([], [])
    for reference in waiting:
        ray.cancel(reference, force=True)
    return {sent[reference] for reference in done if _succeeded(reference)}


@contextmanager
def _requested_from_autoscaler(kind: str, count: int) -> Iterator[None]:
    """Let a cluster with an autoscaler start nodes for this many workers; without one it has no effect."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{kind: 1}] * count)
    try:
        yield
    finally:
        request_resources(bundles=[])


def _succeeded(reference: object) -> bool:
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayError:
        return False
    return True


def _say_waiting(
    job: TrainingJob, counts: Sequence[int], there: int, kind: str, section: str, report: Reporter
) -> None:
    hint = "" if len(counts) > 1 else f"; {section}.min_workers lets it go on with fewer"
    report.progress(0, job.steps, f"{job.name}: waiting for {counts[0] - there} of {counts[0]} {kind}s{hint}")
