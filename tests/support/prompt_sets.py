"""Prompt sets as the stage `prompts` writes them, for tests of the stages that read them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from stages.data.datasets import write_dataset
from stages.data.schemas import PROMPTS, content_id

CONCEPTS = ("toy", "mug", "ball", "duck")


def write_prompts(
    folder: Path,
    dataset: str = "prompts",
    concepts: tuple[str, ...] = CONCEPTS,
    template: str = "a photo of a [v] {concept} {background}",
) -> Path:
    """Write prompts of each concept in six places into a dataset below `folder`; returns `folder`."""
    backgrounds = ("on the beach", "in the snow", "on the grass", "in the forest", "on a city street", "in the ocean")
    rows = [
        {
            "prompt_id": content_id(concept, background),
            "concept": concept,
            "prompt": template.format(concept=concept, background=background),
            "variation": "background" if dataset == "prompts" else "tailored",
            "writer": "grammar",
        }
        for concept in concepts
        for background in backgrounds
    ]
    write_dataset(folder / dataset, pa.Table.from_pylist(rows, schema=PROMPTS), PROMPTS)
    return folder
