"""A worker of the evaluation: how well the masks of RealCustom++ Table V's four recipes fit the object, step by step.

The true mask of a painted picture is what the independent judge finds in it when it is finished. Masks are found in
every step, without early stop, so that one sees when they settle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from model.adapters.visual_attention import VisualAttentionProcessor
from model.backbone import Backbone
from model.guidance.masks import grid_at
from model.guidance.settings import InferenceSettings
from model.pictures.decoding import load_picture, to_png
from model.pictures.tensors import mask_picture, to_tensor
from model.pipeline import RealCustomOutput
from model.scoring.metrics import JudgeScorer, largest_iou, mask_iou
from stages.config import Config
from stages.data.schemas import MASKS
from stages.evaluate.cases import Case
from stages.evaluate.painter import MASK_SIDE, PaintingPaths, load_pipeline
from stages.evaluate.scorer import load_judge
from stages.inference import painting_options

#: Table V, Nos. 1 to 4; "cross" is the low resolution that the backbone's profile names.
RECIPES = ("cross_all", "cross", "cross_self_all", "cross_self")

#: What a worker is given: one row a picture.
MASK_CASES = pa.schema(
    [
        pa.field("recipe", pa.string()),  # the same in all rows of a batch
        pa.field("subject", pa.string()),
        pa.field("word", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("reference", pa.binary()),
    ]
)


def mask_table(cases: Sequence[Case], recipe: str) -> pa.Table:
    """Cases as a table for the workers, to be painted with masks of one recipe."""
    rows = [
        {
            "recipe": recipe,
            "subject": case.subject.name,
            "word": case.subject.word,
            "prompt": case.prompt,
            "seed": case.seed,
            "reference": case.subject.reference,
        }
        for case in cases
    ]
    return pa.Table.from_pylist(rows, MASK_CASES)


def recipe_downscales(recipe: str, config: InferenceSettings, present: Sequence[int]) -> dict[str, list[int]]:
    """What the pipeline is told for one of `RECIPES`.

    Args:
        recipe: its name.
        config: whose cross-attention layers are the low-resolution ones.
        present: downscales of all attention layers, relative to the largest grid's.
    """
    crosses = list(present) if recipe == "cross_all" else list(config.mask_cross_downscales)
    selves = {"cross_self_all": list(present), "cross_self": [min(present)]}.get(recipe, [])
    return {"mask_cross_downscales": crosses, "mask_self_downscales": selves}


def grids_of(downscales: Mapping[str, Sequence[int]], grids: Mapping[int, int]) -> dict[str, list[int]]:
    """The grids that take part in a recipe, as columns of its rows."""
    return {
        "cross_grids": [grids[at] for at in downscales["mask_cross_downscales"]],
        "self_grids": [grids[at] for at in downscales["mask_self_downscales"]],
    }


def attention_processors(backbone: Backbone) -> list[VisualAttentionProcessor]:
    """Those of a UNet that an adapter is attached to."""
    processors = backbone.unet.attn_processors.values()
    return [processor for processor in processors if isinstance(processor, VisualAttentionProcessor)]


def attention_grids(backbone: Backbone) -> dict[int, int]:
    """The attention layers' downscales relative to the largest grid's, and the height of the grid of each."""
    downscales = sorted({processor.downscale for processor in attention_processors(backbone)})
    side = backbone.resolution // backbone.latent_scale
    return {downscale // downscales[0]: grid_at((side, side), downscale)[0] for downscale in downscales}


class MaskPainter:
    """Ray Data calls it with tables of `MASK_CASES` and gets tables of `MASKS`, a row a step of a picture."""

    def __init__(self, config: Config, place: PaintingPaths) -> None:
        self.pipeline = load_pipeline(config, place)
        self.inference = config.inference
        self.judge: JudgeScorer = load_judge(place.backbone)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Paint all cases with their recipe; pictures in which the judge finds no object give no rows."""
        cases = batch.to_pylist()
        grids = attention_grids(self.pipeline.backbone)
        downscales = recipe_downscales(cases[0]["recipe"], self.inference, list(grids))
        every_step = {"mask_steps": self.inference.steps, "mask_every": 1}
        output = self.pipeline(
            [case["prompt"] for case in cases],
            [load_picture(case["reference"]) for case in cases],
            [case["word"] for case in cases],
            seeds=[case["seed"] for case in cases],
            **{**painting_options(self.inference), **every_step, **downscales},
        )
        rows = [row | grids_of(downscales, grids) for row in self._measure(cases, output)]
        return pa.Table.from_pylist(rows, MASKS)

    def _measure(self, cases: Sequence[Mapping[str, Any]], output: RealCustomOutput) -> list[dict[str, Any]]:
        masks = torch.stack([torch.stack([mask[0] for mask in steps]) for steps in output.masks])  # (B, steps, G, G')
        truth = self.judge.object_mask(to_tensor(output.images), (masks.shape[2], masks.shape[3])).cpu()
        timesteps = self.pipeline.scheduler.timesteps.tolist()
        rows = []
        for case, own, true, picture in zip(cases, masks, truth, output.images, strict=True):
            if not true.any():
                continue
            everywhere = true.expand_as(own)
            last = len(own) - 1
            for step, (iou, largest) in enumerate(
                zip(mask_iou(own, everywhere), largest_iou(own, everywhere), strict=True)
            ):
                rows.append(
                    {
                        **{key: case[key] for key in ("recipe", "subject", "prompt", "seed")},
                        "step": step,
                        "timestep": int(timesteps[step]),
                        "iou": float(iou),
                        "largest_iou": float(largest),
                        "picture": to_png(picture) if step == last else None,
                        "mask": to_png(mask_picture(own[step : step + 1], MASK_SIDE)) if step == last else None,
                    }
                )
        return rows
