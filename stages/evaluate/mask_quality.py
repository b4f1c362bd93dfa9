"""An experiment of the evaluation: the masks of RealCustom++ Table V's four recipes in each denoising step.

The independent judge finds the true mask of the object in the finished picture. The guidance branch runs in every
step, without early stop, so that the report shows when the masks settle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from model.adapters.visual_attention import attached_processors
from model.backbone import Backbone
from model.guidance.masks import grid_at
from model.guidance.settings import InferenceSettings
from model.pictures.decoding import load_picture, to_png
from model.pictures.tensors import mask_picture, to_tensor
from model.pipeline_output import RealCustomOutput
from model.scoring.metrics import JudgeScorer, largest_iou, mask_iou
from stages.config import Config
from stages.data.schemas import MASKS
from stages.evaluate.cases import Case
from stages.evaluate.models import Models
from stages.evaluate.painter import MASK_SIDE

#: Table V, Nos. 1 to 4; "cross" is the low resolution that the backbone's profile names.
RECIPES = ("cross_all", "cross", "cross_self_all", "cross_self")

#: The input: one row for each picture.
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
    """Cases as a table for the workers, to be painted with the masks of one recipe."""
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
    """The options of the pipeline for one of `RECIPES`.

    Args:
        recipe: Its name.
        config: Names the low-resolution cross-attention layers.
        present: Downscales of all attention layers, relative to the largest grid.
    """
    cross_attention = list(present) if recipe == "cross_all" else list(config.mask_cross_downscales)
    self_attention = {"cross_self_all": list(present), "cross_self": [min(present)]}.get(recipe, [])
    return {"mask_cross_downscales": cross_attention, "mask_self_downscales": self_attention}


def grids_of(downscales: Mapping[str, Sequence[int]], grids: Mapping[int, int]) -> dict[str, list[int]]:
    """The attention grids of a recipe, as columns of its rows."""
    return {
        "cross_grids": [grids[at] for at in downscales["mask_cross_downscales"]],
        "self_grids": [grids[at] for at in downscales["mask_self_downscales"]],
    }


def attention_grids(backbone: Backbone) -> dict[int, int]:
    """The attention layers' downscales, relative to the largest grid -> the height of the grid."""
    downscales = sorted({processor.downscale for processor in attached_processors(backbone.unet)})
    side = backbone.resolution // backbone.latent_scale
    return {downscale // downscales[0]: grid_at((side, side), downscale)[0] for downscale in downscales}


class MaskPainter:
    """Takes tables of `MASK_CASES`, and returns tables of `MASKS`: one row for each step of each picture."""

    def __init__(self, config: Config, models: Models) -> None:
        assert models.scorer.judge is not None
        self.pipeline = models.pipeline
        self.inference = config.inference
        self.judge: JudgeScorer = models.scorer.judge

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Paint all cases with their recipe; a picture in which the judge finds no object has no rows."""
        cases = batch.to_pylist()
        grids = attention_grids(self.pipeline.backbone)
        downscales = recipe_downscales(cases[0]["recipe"], self.inference, list(grids))
        settings = replace(
            self.inference,
            mask_steps=self.inference.steps,
            mask_every=1,
            mask_cross_downscales=downscales["mask_cross_downscales"],
            mask_self_downscales=downscales["mask_self_downscales"],
        )
        output = self.pipeline(
            [case["prompt"] for case in cases],
            [load_picture(case["reference"]) for case in cases],
            [case["word"] for case in cases],
            seeds=[case["seed"] for case in cases],
            settings=settings,
        )
        rows = [row | grids_of(downscales, grids) for row in self._measure(cases, output)]
        return pa.Table.from_pylist(rows, MASKS)

    def _measure(self, cases: Sequence[Mapping[str, Any]], output: RealCustomOutput) -> list[dict[str, Any]]:
        masks = torch.stack([torch.stack([mask[0] for mask in steps]) for steps in output.masks])  # (B, steps, G, G')
        truth = self.judge.object_mask(to_tensor(output.images), (masks.shape[2], masks.shape[3])).cpu()
        rows: list[dict[str, Any]] = []
        for case, own, true, picture in zip(cases, masks, truth, output.images, strict=True):
            if true.any():
                same = {key: case[key] for key in ("recipe", "subject", "prompt", "seed")}
                steps = _measure_steps(own, true, picture)
                rows += [{**same, "timestep": output.timesteps[row["step"]], **row} for row in steps]
        return rows


def _measure_steps(masks: Tensor, truth: Tensor, picture: Image.Image) -> list[dict[str, Any]]:
    """The IoU of each step's mask (steps, G, G') with the true one (G, G'); pictures are in the last row only."""
    true = truth.expand_as(masks)
    rows: list[dict[str, Any]] = [
        {"step": step, "iou": iou, "largest_iou": largest, "picture": None, "mask": None}
        for step, (iou, largest) in enumerate(
            zip(mask_iou(masks, true).tolist(), largest_iou(masks, true).tolist(), strict=True)
        )
    ]
    return [*rows[:-1], {**rows[-1], "picture": to_png(picture), "mask": to_png(mask_picture(masks[-1:], MASK_SIDE))}]
