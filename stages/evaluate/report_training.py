"""The report's parts about the training: its plots, its data, and the settings of the run."""

from __future__ import annotations

import base64
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from stages.config import Config
from stages.data.datasets import dataset_rows, read_dataset
from stages.data.schemas import PROMPTS, REJECTED
from stages.storage import StorePath

_PLOTS = (
    (
        "train_adapter",
        "curves.png",
        "Training of the adapter",
        "The diffusion loss over the steps: in total, by the source of the examples, and by quarters of the noise "
        "schedule.",
    ),
    (
        "train_adapter",
        "samples.png",
        "Sample pictures during training",
        "All samples have the same subjects, prompts and noise; the subjects are part of the training data.",
    ),
    (
        "customize",
        "samples.png",
        "Learning concepts",
        "Each subject's pictures; below them, from the same prompts and noise, pictures of the class word alone and of "
        "the concept over the steps.",
    ),
    (
        "customize",
        "trade_off.png",
        "The trade-off of learned concepts",
        "Subject similarity against prompt fidelity over the steps. Step 0 is the class word alone.",
    ),
    (
        "customize",
        "curves.png",
        "Training of the concepts",
        "The losses over the steps: diffusion on the subject's pictures, mlm on context-rich prompts (without lambda), "
        "class on pictures of the class word.",
    ),
    (
        "contextualizer",
        "curves.png",
        "Training of the Contextualizer",
        "Loss and accuracy over the steps on masked words of the prompts that it is trained with.",
    ),
    (
        "curriculum",
        "plan.png",
        "The curriculum",
        "During training the share of examples with two views of one object grows, and the crops of the reference "
        "become smaller.",
    ),
    (
        "filter",
        "waterfall.png",
        "The filter",
        "The samples that each rule rejects of those that passed the rules before it, with examples.",
    ),
)
_HIDDEN_SECTIONS = {"run", "register", "serve"}  # they do not affect the pictures
_PROMPT_SAMPLES = 8


def describe_plots(inputs: Mapping[str, StorePath]) -> list[dict[str, Any]]:
    """The plots that the stages before have drawn."""
    plots = []
    for stage, name, title, text in _PLOTS:
        if stage in inputs and (inputs[stage] / name).is_file():
            encoded = base64.b64encode((inputs[stage] / name).read_bytes()).decode()
            uri, wide = f"data:image/png;base64,{encoded}", stage == "train_adapter"
            plots.append({"title": title, "text": text, "uri": uri, "wide": wide})
    return plots


def describe_funnel(stage: str, inputs: Mapping[str, StorePath]) -> dict[str, Any] | None:
    """How many samples a stage has kept, and the reasons of the others; None if the stage is not an input."""
    if stage not in inputs:
        return None
    kept = dataset_rows(inputs[stage] / "samples")
    others = [inputs[stage] / name for name in ("rejected", "failed") if (inputs[stage] / name).is_dir()]
    reasons = Counter(
        reason for folder in others for reason in read_dataset(folder, REJECTED, ["reason"]).column(0).to_pylist()
    )
    total = kept + reasons.total()
    shares = [{"name": name, "count": count, "share": 100 * count / total} for name, count in reasons.most_common()]
    return {"stage": stage, "kept": kept, "total": total, "reasons": shares}


def describe_prompts(inputs: Mapping[str, StorePath]) -> dict[str, Any] | None:
    """Some of the prompts of the stage `prompts`, spread over all; None without that stage."""
    if "prompts" not in inputs:
        return None
    table = read_dataset(inputs["prompts"] / "prompts", PROMPTS, ["prompt", "writer"])
    if not table.num_rows:
        return None
    spread = range(0, table.num_rows, max(1, table.num_rows // _PROMPT_SAMPLES))
    samples = [table.column("prompt")[row].as_py() for row in spread]
    writers = sorted(set(table.column("writer").to_pylist()))
    return {"writer": ", ".join(writers), "count": table.num_rows, "samples": samples[:_PROMPT_SAMPLES]}


def describe_settings(config: Config) -> list[dict[str, Any]]:
    """The sections of the configuration that affect the pictures, with nested keys joined by dots."""
    sections = {
        section.name: dataclasses.asdict(getattr(config, section.name))
        for section in dataclasses.fields(config)
        if section.name != "profile" and section.name not in _HIDDEN_SECTIONS
    }
    return [{"name": name, "entries": list(_flatten(values).items())} for name, values in sections.items()]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
