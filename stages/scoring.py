"""How painted pictures are scored: with which prompts and encoders. Shared by the stages that paint to measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from model.microworld.captions import BACKGROUND_PHRASES
from model.scoring.metrics import ClipScorer, DinoScorer, JudgeScorer, SubjectEmbedder
from prompts.dreambench import dreambench_prompts
from stages.inference import on_this_machine


class ScoringSettings(Protocol):
    """The settings of the section `evaluate` that say how pictures are scored."""

    @property
    def prompts(self) -> list[str]:
        """Templates; none: the microworld's backgrounds, or DreamBench's."""

    @property
    def similarity(self) -> str:
        """judge, clip or dino."""

    @property
    def clip(self) -> str:
        """A subfolder of the backbone, a folder or a hub id."""

    @property
    def dino(self) -> str:
        """A folder or a hub id."""


def templates_for(word: str, settings: ScoringSettings, own: Sequence[str] = ()) -> Sequence[str]:
    """The prompt templates, each with `{word}`, of a subject with this class word.

    Args:
        word: The class word.
        settings: Their prompts replace all others. The judge needs those of its own world.
        own: Those of the subject's benchmark; none: DreamBench's.
    """
    if settings.prompts:
        return settings.prompts
    if settings.similarity == "judge":
        return [f"a photo of a {{word}} {phrases[0]}" for phrases in BACKGROUND_PHRASES.values()]
    return own or dreambench_prompts(word)


def background_of(prompt: str) -> str | None:
    """The microworld's background that a prompt names, None when it names none."""
    known = BACKGROUND_PHRASES.items()
    return next((name for name, phrases in known if any(phrase in prompt for phrase in phrases)), None)


class ScoringModels:
    """The encoders that score.

    Attributes:
        clip: For CLIP-T.
        judge: The microworld's; None if another encoder measures the similarity.
        subjects: Measures the similarity of subjects: the judge, CLIP or DINO.
    """

    def __init__(self, settings: ScoringSettings, backbone: str, device: str) -> None:
        self.clip = ClipScorer.of_backbone(backbone, on_this_machine(settings.clip, "evaluate.clip")).to(device)
        self.judge: JudgeScorer | None = None
        if settings.similarity == "judge":
            self.judge = JudgeScorer.from_pretrained(Path(backbone) / "judge")
        self.subjects: SubjectEmbedder = self.judge or self.clip
        if settings.similarity == "dino":
            self.subjects = DinoScorer.from_pretrained(on_this_machine(settings.dino, "evaluate.dino")).to(device)

    def fidelity(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Prompt fidelity (B,) of pictures (B, 3, H, W): the judge's probability of the background, or CLIP-T.

        The judge needs prompts that name a background.
        """
        if self.judge is None:
            return self.clip.text_alignment(pictures, prompts)
        backgrounds = [background for prompt in prompts if (background := background_of(prompt)) is not None]
        return self.judge.background_probability(pictures, backgrounds)
