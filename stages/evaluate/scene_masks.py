"""An experiment of the evaluation: the masks of Table V's recipes in noisy microworld scenes, against the exact masks.

No picture is painted: the guidance branch runs once on rendered scenes with the noise of some timesteps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model.adapters.visual_attention import attached_processors
from model.guidance.guidance_branch import GuidanceLayers, GuidanceRecorder, run_guidance_branch
from model.guidance.mask_recipe import MaskRecipe
from model.guidance.masks import Grid, grid_at
from model.guidance.subjects import Subject
from model.microworld.captions import CaptionShares
from model.microworld.scenes import SceneBatch, SceneShares, draw_specs, render_scenes
from model.microworld.shapes import TRAINED_CATEGORIES
from model.scoring.metrics import largest_iou, mask_iou
from stages.config import Config
from stages.data.schemas import SCENE_MASKS
from stages.evaluate.mask_quality import attention_grids, grids_of, recipe_downscales
from stages.evaluate.models import Models

TIMESTEPS = (900, 700, 500, 300, 100)

#: The input: one row for all scenes of a recipe with this number of objects.
SCENE_CASES = pa.schema(
    [
        pa.field("recipe", pa.string()),
        pa.field("objects", pa.int32()),
        pa.field("count", pa.int32()),
        pa.field("seed", pa.int64()),
    ]
)


def scene_table(recipe: str, count: int, seed: int) -> pa.Table:
    """The input for `count` scenes with one object and `count` with two."""
    rows = [{"recipe": recipe, "objects": objects, "count": count, "seed": seed} for objects in (1, 2)]
    return pa.Table.from_pylist(rows, SCENE_CASES)


def draw_scenes(objects: int, count: int, seed: int) -> SceneBatch:
    """Unseen scenes with one or two objects; captions name the objects and the background only."""
    plain = CaptionShares(generic_noun=0, colour=0, pattern=0, size=0, pose=0, filler=0, usual_phrase=1.0)
    shares = SceneShares(two_objects=float(objects == 2), captions=plain)
    return render_scenes(draw_specs("test", count, seed, categories=TRAINED_CATEGORIES, shares=shares))


class SceneMaskMeter:
    """Takes tables of `SCENE_CASES`, and returns tables of `SCENE_MASKS`: one row for each object and timestep."""

    def __init__(self, config: Config, models: Models) -> None:
        self.backbone = models.pipeline.backbone
        self.inference = config.inference

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Measure each case at every timestep."""
        return pa.Table.from_pylist([row for case in batch.to_pylist() for row in self._measure(case)], SCENE_MASKS)

    @torch.no_grad()
    def _measure(self, case: Mapping[str, Any]) -> list[dict[str, Any]]:
        scenes = draw_scenes(case["objects"], case["count"], case["seed"])
        grids = attention_grids(self.backbone)
        downscales = recipe_downscales(case["recipe"], self.inference, list(grids))
        layers = GuidanceLayers.of(attached_processors(self.backbone.unet), *downscales.values())
        pixels = torch.from_numpy(scenes.image).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = self.backbone.encode_pictures(pixels)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(case["seed"])).to(latents)
        size = (pixels.shape[2], pixels.shape[3])
        recipe = MaskRecipe.of(self.backbone, layers, _captions(scenes), self._subjects(scenes, case["objects"]), size)
        grid = grid_at((latents.shape[2], latents.shape[3]), layers.largest)
        truth = exact_masks(scenes, case["objects"], grid)
        same = {"recipe": case["recipe"], **grids_of(downscales, grids)}
        rows: list[dict[str, Any]] = []
        for number in TIMESTEPS:
            timestep = torch.tensor(number, device=latents.device)
            noisy = self.backbone.scheduler.add_noise(latents, noise, timestep)
            masks = self._find_masks(noisy, timestep, scenes, layers, recipe).unflatten(2, grid).cpu()
            rows += [{**same, "timestep": number, **row} for row in _rows(scenes, masks, truth)]
        return rows

    def _find_masks(
        self, noisy: Tensor, timestep: Tensor, scenes: SceneBatch, layers: GuidanceLayers, recipe: MaskRecipe
    ) -> Tensor:
        """The masks of all objects from one pass of the guidance branch: (B, S, positions)."""
        recorder = GuidanceRecorder(layers, recipe.indicator, (noisy.shape[2], noisy.shape[3]))
        run_guidance_branch(self.backbone, noisy, timestep, self.backbone.encode_prompt(_captions(scenes)), recorder)
        return recipe.masks(recorder.maps()).transpose(1, 2)

    def _subjects(self, scenes: SceneBatch, objects: int) -> list[list[Subject]]:
        """The words of each scene, which share the scope of a single subject. Masks do not depend on the references."""
        blank, scope = Image.new("RGB", (1, 1)), self.inference.mask_scope / objects
        return [[Subject(picture=blank, word=word, scope=scope) for word in words] for words in _words(scenes)]


def _captions(scenes: SceneBatch) -> list[str]:
    return [spec.caption.text for spec in scenes.specs]


def _words(scenes: SceneBatch) -> list[list[str]]:
    return [
        [item.instance.category for item in (spec.subject, spec.neighbour) if item is not None] for spec in scenes.specs
    ]


def exact_masks(scenes: SceneBatch, objects: int, grid: Grid) -> Tensor:
    """The positions of a grid that each object covers by more than half: (B, objects, G, G')."""
    alphas = torch.from_numpy(scenes.mask), torch.from_numpy(scenes.neighbour_mask)
    cover = torch.stack(alphas[:objects], 1).float() / 255
    return F.interpolate(cover, grid, mode="area") > 0.5


def _rows(scenes: SceneBatch, masks: Tensor, truth: Tensor) -> list[dict[str, Any]]:
    """The IoU of the masks (B, S, G, G') of all objects that cover a position."""
    rows: list[dict[str, Any]] = []
    for item in range(truth.shape[1]):
        ious, largest = (iou(masks[:, item], truth[:, item]) for iou in (mask_iou, largest_iou))
        for scene, (iou, most) in enumerate(zip(ious.tolist(), largest.tolist(), strict=True)):
            if truth[scene, item].any():
                words, prompt = _words(scenes)[scene], scenes.specs[scene].caption.text
                found = {"objects": truth.shape[1], "scene": scene, "word": words[item], "prompt": prompt}
                rows.append({**found, "iou": iou, "largest_iou": most})
    return rows
