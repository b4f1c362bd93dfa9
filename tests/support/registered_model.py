"""A registered model of random weights, for tests of `register` and `serve`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from stages.contract import StageResult
from stages.register.stage import run
from tests.support.contexts import make_context
from tests.support.random_adapter import write_random_adapter
from tests.support.random_backbone import write_random_backbone

QUICK: dict[str, Any] = {"inference": {"steps": 2, "mask_steps": 1}}


class Registry:
    """A registry, and under `root` the outputs of the stages before `register`.

    Args:
        root: An empty folder.
        uri: Of an MLflow server or a database; None: an SQLite file under `root`.
        artifacts: Where files go; None: where a server says, or under `root`.
    """

    def __init__(self, root: Path, uri: str | None = None, artifacts: str | None = None) -> None:
        self.root = root
        self.inputs = {name: root / name for name in ("base", "train_adapter", "customize", "evaluate")}
        backbone = write_random_backbone(self.inputs["base"] / "backbone")
        write_random_adapter(self.inputs["train_adapter"] / "adapter", backbone)
        self.inputs["customize"].mkdir()
        (self.inputs["customize"] / "concepts.json").write_text("[]")
        self.uri = uri or f"sqlite:///{root / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        artifacts = artifacts if uri else str(root / "artifacts")
        self.experiment = self.client.create_experiment(root.name, artifact_location=artifacts)
        self.runs = 0

    def register(
        self, similarity: float, evaluation: str = "the same", **sections: Any
    ) -> tuple[dict[str, Any], StageResult]:
        """Run the stage on metrics with this similarity and a controllability of 0.5; `registered.json`, result."""
        self.runs += 1
        if "evaluate" in self.inputs:
            _write_metrics(self.inputs["evaluate"], similarity, evaluation)
        context = make_context(
            self.root / f"register-{self.runs}", inputs=self.inputs, tracking_uri=self.uri, **QUICK, **sections
        )
        run_id = self.client.create_run(self.experiment).info.run_id
        result = run(dataclasses.replace(context, tracking_run_id=run_id))
        return json.loads((context.output / "registered.json").read_text()), result


def _write_metrics(folder: Path, similarity: float, evaluation: str) -> None:
    folder.mkdir(exist_ok=True)
    scores = {"similarity": similarity, "controllability": 0.5}
    means = {name: {"mean": value, "low": 0.0, "high": 1.0} for name, value in scores.items()}
    metrics = {"evaluation": evaluation, "arms": {"adapter_mask": means}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
