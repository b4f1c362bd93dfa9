"""A training on nodes that come and go; its folder is on a disk that all of them mount."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest

from stages.training.config import TrainerConfig
from tests.stages.training.test_trainer import assert_same, plain_loop, steps_of
from tests.support.cluster import NodeOptions, needs_nodes, ray_cluster
from tests.support.training_tasks import LinearTask

STEPS, SEED, INTERVAL = 60, 3, 10
CONFIG = TrainerConfig(workers=2, min_workers=1, max_failures=3, checkpoint_every=INTERVAL, learning_rate=1e-2)

DRIVER = """
import json, sys
from pathlib import Path
import ray
from stages.training import elasticity
from stages.training.config import TrainerConfig
from stages.training.trainer import fit
from tests.support.contexts import make_context
from tests.support.training_tasks import LinearTask

class Printed(list):
    def append(self, event):
        print(json.dumps(event), flush=True)

folder, config, steps, seed = sys.argv[1:]
ray.init(address="auto", logging_level="ERROR")
elasticity.PATIENCE_SECONDS = 40.0
context = make_context(Path(folder), events=Printed())
fit(
    LinearTask(seconds_a_step=0.3, noise=0), steps=int(steps), config=TrainerConfig(**json.loads(config)),
    context=context, name="linear", seed=int(seed), section="a.trainer", batch_size=16, batch_setting="a.b",
)
"""


@pytest.mark.nightly
@pytest.mark.slow
@needs_nodes
def test_a_training_waits_for_a_node_and_goes_on_without_one(tmp_path: Path) -> None:
    """At most the steps since the last checkpoint are trained again, and the result is that of one process."""
    metrics = tmp_path / "scratch" / "train" / "linear.jsonl"
    options = NodeOptions(name="head", cpus=0, shared=(str(tmp_path),))
    with ray_cluster() as cluster:
        head = cluster.start_head(options)
        cluster.add_node(dataclasses.replace(options, name="first", cpus=1))
        words = [str(tmp_path), json.dumps(dataclasses.asdict(CONFIG)), str(STEPS), str(SEED)]
        driver = head.start(sys.executable, "-c", DRIVER, *words)
        time.sleep(8)
        second = cluster.add_node(dataclasses.replace(options, name="second", cpus=1))
        deadline = time.monotonic() + 240
        while not metrics.exists() or len(steps_of(metrics)) < 25:
            assert driver.entered.poll() is None, driver.wait(1).stdout
            assert time.monotonic() < deadline
            time.sleep(0.2)
        second.kill()
        ended = driver.wait(300)

    assert ended.returncode == 0, ended.stdout
    notes = [json.loads(line).get("note", "") for line in ended.stdout.splitlines() if line.startswith('{"event"')]
    started = [note for note in notes if note.startswith(("linear: waiting for", "linear: starting"))]
    assert list(dict.fromkeys(started)) == [
        "linear: waiting for 1 of 2 CPUs",
        "linear: starting 2 workers",
        "linear: starting 1 workers",
    ]
    repeated = [step for step in range(STEPS + 1) if steps_of(metrics).count(step) > 1]
    assert len(repeated) <= INTERVAL
    weights = metrics.with_name("linear-weights")
    assert_same(weights, plain_loop(LinearTask(noise=0), CONFIG, STEPS, SEED)[0])
