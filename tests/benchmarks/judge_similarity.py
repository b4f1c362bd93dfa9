"""What the judge's similarity measures: that of different objects which share a category, colours and a pattern.

    python -m tests.benchmarks.judge_similarity

Hardware and time: one core; two minutes.

Scenes of one object each, two views of every object; no training shows any of them. For each set of properties the
table has the mean similarity of an object's first view to those of the other objects with the same properties, over all
objects that have such a counterpart. So it says which similarity a picture reaches that has these properties of its
subject, and is else of another one. The last row is the similarity of the two views of an object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.micro_sd.judge import Judge
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.appearance import visible_appearances
from model.microworld.scenes import SceneShares, SceneSpec, draw_specs, render_scenes
from model.scoring.metrics import JudgeScorer
from tests.benchmarks.support.command_line import benchmark_parser

#: Rows of the table: the properties that two objects share.
SHARED: tuple[tuple[str, ...], ...] = (
    (),
    ("category",),
    ("main colour",),
    ("category", "main colour"),
    ("main colour", "second colour", "pattern"),
    ("category", "main colour", "pattern"),
    ("category", "main colour", "second colour"),
    ("category", "main colour", "second colour", "pattern"),
)
_CHUNK = 200


def draw_views(objects: int, seed: int) -> tuple[list[SceneSpec], list[SceneSpec]]:
    """Two scenes of each of `objects` drawn objects; one that is drawn twice counts once."""
    specs = draw_specs("test", 2 * objects, seed, views=2, shares=SceneShares(two_objects=0.0))
    by_object = {first.subject.instance: (first, second) for first, second in zip(specs[::2], specs[1::2], strict=True)}
    return [first for first, _ in by_object.values()], [second for _, second in by_object.values()]


def properties_of(specs: Sequence[SceneSpec]) -> dict[str, list[str]]:
    """Property -> its value for each scene's object, as far as the view shows it."""
    seen = visible_appearances([spec.subject for spec in specs])
    return {
        "category": [spec.subject.instance.category for spec in specs],
        "main colour": [own.colour for own in seen],
        "second colour": [own.second_colour for own in seen],
        "pattern": [own.pattern for own in seen],
    }


def embeddings(scorer: JudgeScorer, specs: Sequence[SceneSpec]) -> Tensor:
    """Unit identity embeddings (N, D) of the scenes' objects."""
    chunks = [specs[start : start + _CHUNK] for start in range(0, len(specs), _CHUNK)]
    pictures = (torch.from_numpy(render_scenes(chunk).image).permute(0, 3, 1, 2).float() / 255 for chunk in chunks)
    return torch.cat([scorer.embed_subjects(picture) for picture in pictures])


def similarity_of_counterparts(embedded: Tensor, properties: Sequence[Sequence[str]]) -> tuple[float, int]:
    """Mean similarity to the other objects with the same properties, and the number of objects that have one.

    Args:
        embedded: Unit embeddings (N, D), one of each object.
        properties: Of each property the N values.
    """
    same = ~torch.eye(len(embedded), dtype=torch.bool)
    for values in properties:
        ids = torch.from_numpy(np.unique(values, return_inverse=True)[1])
        same &= ids[:, None] == ids
    count = same.sum(1)
    means = ((embedded @ embedded.T) * same).sum(1)[count > 0] / count[count > 0]
    return float(means.mean()), len(means)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--objects", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    views = draw_views(options.objects, options.seed)
    scorer = JudgeScorer(Judge.from_pretrained(WEIGHTS_FOLDER / "judge"))
    first, second = (embeddings(scorer, scenes) for scenes in views)
    properties = properties_of(views[0])
    print("| shared with another object | similarity | objects |\n|---|---|---|")
    for names in SHARED:
        mean, count = similarity_of_counterparts(first, [properties[name] for name in names])
        print(f"| {', '.join(names) or 'nothing'} | {mean:.2f} | {count} |")
    print(f"| another view of the object itself | {float((first * second).sum(1).mean()):.2f} | {len(first)} |")


if __name__ == "__main__":
    main()
