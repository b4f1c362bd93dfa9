"""The settings of the stage `evaluate`."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeInt, PositiveInt
from stages.settings import BackbonePart, LocalPath, ModelLocation, Operation, Template


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Held-out subjects times prompts, in three arms: text only, adapter without mask, adapter with mask.

    Pairs of subjects and the quality of masks are judged by the microworld's judge only.
    """

    subjects: NonNegativeInt = 16
    """At most; 0: nothing is evaluated, and the adapter is registered without a score."""
    prompts_per_subject: PositiveInt = 3
    pairs: NonNegativeInt = 6
    """Of subjects in one picture; the first of each pair goes through three rounds as well."""
    mask_subjects: NonNegativeInt = 6
    """Subjects painted once with each of the four mask recipes."""
    mask_scenes: NonNegativeInt = 32
    """Real scenes of one object, and as many of two, in which the recipes search for them."""
    batch_size: Operation[PositiveInt] = 8
    """Pictures painted at once."""
    workers: Operation[PositiveInt] = 2
    """Processes that paint, one CPU (or GPU) each."""
    use_gpu: Operation[bool] = False
    subjects_folder: LocalPath | None = None
    """A folder for each subject, its first picture is the reference: DreamBench, CustomConcept101, DreamBench++, or
    your own (see datasets.md); null: the microworld's."""
    prompts: list[Template] = field(default_factory=list)
    """[]: the microworld's backgrounds, those of the benchmark in the folder, or DreamBench's."""
    similarity: Literal["judge", "clip", "dino"] = "judge"
    """Of subjects: by the microworld's own judge, CLIP-I or DINO-I."""
    clip: BackbonePart = "clip"
    """For CLIP-T and CLIP-I."""
    dino: ModelLocation = "facebook/dino-vits16"
    """For DINO-I."""
