"""Make the adapter of a run the one that ships with the code: `python -m pipelines.ship_adapter RUN_FOLDER`.

Replaces `model/micro_sd/adapter`. The run must have trained on the base weights that ship. Figures that were measured
with the adapter can be added to its card, `README.md`, by hand: the fingerprint leaves that file out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
from pathlib import Path

from model.errors import ModelError
from model.micro_sd.shipped_adapter import ADAPTER_FOLDER, base_digest, save_shipped_adapter
from model.micro_sd.weights import WEIGHTS_FOLDER
from pipelines.cli.painting_model import model_of_run
from pipelines.config.keys import flat_values
from pipelines.config.loading import config_from_dict, load_config
from pipelines.errors import PipelineError
from pipelines.graph import pipeline_graph
from pipelines.store.manifest import Manifest
from pipelines.store.store import Store
from stages.config import Config


def ship_adapter(run_folder: Path, folder: Path = ADAPTER_FOLDER) -> None:
    """Write the latest adapter of a run folder into `folder`.

    Raises:
        PipelineError: There is no adapter, a file is damaged, or it was trained on another base.
    """
    store = Store(run_folder)
    config = config_from_dict(store.read_latest()[0])
    model = model_of_run(config, store)
    manifest = store.latest_outputs()["train_adapter"].manifest
    try:
        if base_digest(Path(model.backbone)) != base_digest(WEIGHTS_FOLDER):
            raise PipelineError(
                f"The adapter in {run_folder} was trained on another base than the one in {WEIGHTS_FOLDER}; "
                "train it with the base that ships: without backbone.weights and without a recipe of your own."
            )
        save_shipped_adapter(
            folder,
            adapter=Path(model.adapter),
            base=WEIGHTS_FOLDER,
            loading=model.loading,
            training=training_section(config, manifest),
        )
    except ModelError as error:
        raise PipelineError(str(error)) from error


def training_section(config: Config, manifest: Manifest) -> str:
    """The section of the model card on the training: its command, what it took and how it ended."""
    finished = datetime.datetime.fromtimestamp(manifest.created, datetime.UTC).date().isoformat()
    rows = {
        "finished": finished,
        "minutes of the stage": f"{manifest.seconds / 60:.0f}",
        **manifest.notes,
        **{name: f"{manifest.metrics[name]:.3g}" for name in ("loss", "gain") if name in manifest.metrics},
        "output": manifest.fingerprint,
        "version of the code": manifest.code,
        **{name: manifest.libraries[name] for name in ("torch", "diffusers") if name in manifest.libraries},
    }
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    head = [
        "## As shipped",
        "",
        "In half precision, to be loaded in float32. `fingerprint.json` has checksums, and the digest of the base",
        "weights that the adapter belongs to (`model/micro_sd/weights`). Trained by Realword's own stages:",
        "",
        f"    {training_command(config)}",
        "    python -m pipelines.ship_adapter RUN_FOLDER",
        "",
        "| of the stage `train_adapter` | |",
        "|---|---|",
    ]
    return "\n".join([*head, *table])


def training_command(config: Config) -> str:
    """The command that trains an adapter with this configuration, in a run folder of your own."""
    values, default = flat_values(config), flat_values(load_config(config.profile))
    graph = pipeline_graph(config)
    other_stages = set(graph.order) - graph.upstream(["train_adapter"])
    changed = {
        key: value
        for key, value in values.items()
        if key != "run.folder" and value != default[key] and key.split(".")[0] not in other_stages
    }
    settings = [f"--set {shlex.quote(f'{key}={_as_yaml(value)}')}" for key, value in changed.items()]
    return " ".join(["python pipeline.py run --stage train_adapter --set run.folder=RUN_FOLDER", *settings])


def _as_yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main(words: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.ship_adapter", description=__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="a run folder with a trained adapter")
    try:
        ship_adapter(parser.parse_args(words).run_folder)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(ADAPTER_FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
