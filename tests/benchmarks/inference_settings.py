"""How an adapter is best used: how much of the gap its pictures close with other settings of the inference.

    python -m tests.benchmarks.inference_settings --output runs/inference
    python -m tests.benchmarks.inference_settings --output runs/mine --adapter RUN/stages/train_adapter/*/adapter

Hardware and time: two cores; a minute and a half for each of ten settings.

Each row changes one setting of `inference`, or two, and keeps the defaults of the profile `micro` else. Held-out
subjects are painted with the mask and scored as in the stage `evaluate`; all rows have the same subjects, prompts and
noise. A finished setting is a JSON file in `--output`, which the same command does not make again; processes that run
the same command at the same time share the settings.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from model.checksums import folder_checksums
from model.errors import ModelError
from model.micro_sd.shipped_adapter import ADAPTER_FOLDER
from pipelines.execution.environment import set_environment
from stages.config import Config
from stages.evaluate.summary import Row
from tests.benchmarks.support.ablation_table import ARM, TEXT_ONLY, gap_closed, similarity_difference, summary_of
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.held_out_pictures import HeldOutPictures, picture_config
from tests.benchmarks.support.results_folder import claim, claimed, write_whole

DEFAULTS = "the defaults"
#: Row of the table -> settings of `inference`.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    DEFAULTS: {},
    "guidance_scale 2": {"guidance_scale": 2.0},
    "guidance_scale 3": {"guidance_scale": 3.0},
    "guidance_scale 8": {"guidance_scale": 8.0},
    "visual_scale 0.75": {"visual_scale": 0.75},
    "visual_scale 1.5": {"visual_scale": 1.5},
    "guidance_scale 3, visual_scale 1.5": {"guidance_scale": 3.0, "visual_scale": 1.5},
    "mask_binary": {"mask_binary": True},
    "mask_scope 0.4": {"mask_scope": 0.4},
    "mask_steps null": {"mask_steps": None},
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all results in a folder have in common."""

    adapter: dict[str, str]
    """Its files' checksums."""
    subjects: int
    painting_steps: int
    seed: int


def files_in(output: Path) -> dict[str, Path]:
    """The JSON files of the rows without adapter and of each setting."""
    return {name: output / f"{name.replace(' ', '_')}.json" for name in (TEXT_ONLY, *SETTINGS)}


def run_missing(output: Path, adapter: Path, config: Config) -> None:
    """Paint text alone and every setting that is neither finished nor running in another process."""
    missing = {name: file for name, file in files_in(output).items() if not file.exists()}
    if not missing:
        return
    with tempfile.TemporaryDirectory() as scratch:
        pictures = HeldOutPictures(config, Path(scratch) / "subjects")
        models = pictures.models(adapter)
        for name, file in missing.items():
            with claimed(file.with_suffix(".lock")) as mine:
                if mine and not file.exists():
                    print(name, flush=True)
                    arm = TEXT_ONLY if name == TEXT_ONLY else ARM
                    write_whole(file, pictures.rows(models, arm, SETTINGS.get(name, {})))


def markdown(results: Mapping[str, Sequence[Row]], plain: Sequence[Row]) -> str:
    """The table of the finished settings, with 95 % intervals over subjects."""
    head = ["inference", "similarity", "against the defaults", "gap closed", "gap closed, held-out categories"]
    head += ["background as the prompt says", "pattern", "both colours"]
    body = [_cells(name, rows, results.get(DEFAULTS), plain) for name, rows in results.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


def _cells(name: str, rows: Sequence[Row], defaults: Sequence[Row] | None, plain: Sequence[Row]) -> list[str]:
    summary = summary_of(plain, rows)
    appearance = summary.appearance["patterned"].arms[ARM] if "patterned" in summary.appearance else {}
    gain = None if defaults is None or name == DEFAULTS else similarity_difference(rows, defaults)
    found = [
        summary.gap_closed.get(ARM),
        gap_closed(plain, rows, held_out_only=True),
        summary.arms[ARM]["controllability"],
        appearance.get("pattern"),
        appearance.get("colours"),
    ]
    similarity = f"{summary.arms[ARM]['similarity']:.2f}"
    shares = ["" if interval is None else f"{interval:.2f}" for interval in found]
    return [name, similarity, "" if gain is None else f"{gain:+.2f}", *shares]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--adapter", type=Path, default=ADAPTER_FOLDER)
    parser.add_argument("--subjects", type=int, default=64)
    parser.add_argument("--painting-steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.subjects < 1:
        parser.error("--subjects must be at least 1.")
    if not (options.adapter / "config.json").is_file():
        parser.error(f"{options.adapter} is no adapter: there is no config.json in it.")
    set_environment("micro")
    disable_progress_bar()
    budget = Budget(
        adapter=folder_checksums(options.adapter),
        subjects=options.subjects,
        painting_steps=options.painting_steps,
        seed=options.seed,
    )
    claim(options.output, budget)
    config = picture_config(options.subjects, options.painting_steps, options.seed, "cpu")
    try:
        run_missing(options.output, options.adapter, config)
    except ModelError as error:
        raise SystemExit(str(error)) from error
    found = {name: file for name, file in files_in(options.output).items() if file.exists()}
    results = {name: json.loads(file.read_text()) for name, file in found.items()}
    if plain := results.pop(TEXT_ONLY, None):
        print(f"\n{markdown(results, plain)}")


if __name__ == "__main__":
    main()
