"""The experiments beside the arms: multi-subject generation and mask quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stages.evaluate.mask_summary import MaskSummary, SceneMaskSummary, summarize_masks, summarize_scene_masks
from stages.evaluate.multi_subject_summary import MultiSubjectSummary, summarize_multi_subject
from stages.evaluate.summary import Row


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """The rows of `multi_subject`, `masks` and `scene_masks`, and their averages."""

    multi_subject_rows: Sequence[Row]
    multi_subject: MultiSubjectSummary
    mask_rows: Sequence[Row]
    masks: MaskSummary
    scene_rows: Sequence[Row]
    scenes: SceneMaskSummary

    @classmethod
    def of(
        cls, multi_subject: Sequence[Row], masks: Sequence[Row], scenes: Sequence[Row], mask_steps: int
    ) -> Experiments:
        """Average the rows."""
        return cls(
            multi_subject_rows=multi_subject,
            multi_subject=summarize_multi_subject(multi_subject),
            mask_rows=masks,
            masks=summarize_masks(masks, mask_steps),
            scene_rows=scenes,
            scenes=summarize_scene_masks(scenes),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and names, for `metrics.json`."""
        return {
            "multi_subject": asdict(self.multi_subject),
            "masks": asdict(self.masks),
            "scene_masks": asdict(self.scenes),
        }

    def flat(self) -> dict[str, float]:
        """The means by the tracker's names: "multi_subject_many_to_many/similarity", "mask_cross_self/iou", ..."""
        means = {
            f"multi_subject_{task}/{name}": interval.mean
            for task, found in self.multi_subject.tasks.items()
            for name, interval in found.items()
        }
        means |= {f"mask_{recipe}/iou": found["iou"].mean for recipe, found in self.masks.recipes.items()}
        return means | {
            f"mask_{recipe}/{group}": interval.mean
            for recipe, found in self.scenes.recipes.items()
            for group, interval in found.items()
        }
