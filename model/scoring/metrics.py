"""Subject similarity and prompt fidelity of pictures, and confidence intervals of their means.

Legend: B pictures, V views of one subject, D width of an embedding, H and W pixels. Pictures are (B, 3, H, W),
RGB in [0, 1].

The papers report CLIP-T (prompt fidelity), CLIP-I and DINO-I (subject similarity; RealCustom++, Sec. IV-A; DreamBooth,
Sec. 4.2). CLIP-I and DINO-I compare whole pictures here, as in DreamBooth; RealCustom++ segments the subjects first.
For the microworld the independent judge (`model/micro_sd/judge.py`) measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from model.adapters.vision_models import normalization
from model.micro_sd.architectures import IMAGE_SIZE
from model.micro_sd.judge import Judge, Verdict
from model.microworld.appearance import PATTERN_NAMES, SECOND_COLOUR_NAMES, Appearance
from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.instances import COLOUR_NAMES
from model.pretrained import split_revision

_SUBJECT_THRESHOLD = 0.2  # of the judge's cover: low, so that soft edges count as subject, not as changed background


class SubjectEmbedder(Protocol):
    """An encoder of pictures; the cosine of two of its vectors is the similarity of their subjects."""

    def embed_subjects(self, pictures: Tensor) -> Tensor:
        """Unit vectors (B, D) of pictures in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """The input format of an encoder: a square of `side` pixels, normalised by channel."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_pretrained(cls, name: str | Path, side: int) -> PictureInput:
        """Read the normalisation from the encoder's own configuration."""
        mean, std = normalization(str(name))
        return cls(side=side, mean=tuple(mean), std=tuple(std))

    def __call__(self, pictures: Tensor) -> Tensor:
        """Resize the shorter side, cut the middle, normalise: (B, 3, side, side)."""
        height, width = pictures.shape[-2:]
        scale = self.side / min(height, width)
        size = (round(height * scale), round(width * scale))
        if size != (height, width):
            pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        square = pictures[..., top : top + self.side, left : left + self.side]
        mean, std = (square.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (square - mean) / std


class ClipScorer(nn.Module):
    """CLIP-T: cosine(prompt, picture). CLIP-I: cosine(picture, picture) (Hessel et al. 2021; DreamBooth, Sec. 4.2)."""

    def __init__(self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, picture_input: PictureInput) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.picture_input = picture_input

    @classmethod
    def from_pretrained(cls, name: str | Path, tokenizer: str | Path | None = None) -> ClipScorer:
        """Load a CLIP and its tokenizer (by default from the same source), each from a hub id or a folder."""
        location, revision = split_revision(name)
        clip = CLIPModel.from_pretrained(location, **revision)
        picture_input = PictureInput.from_pretrained(name, clip.config.vision_config.image_size)
        words, words_revision = split_revision(tokenizer or name)
        return cls(clip, AutoTokenizer.from_pretrained(words, **words_revision), picture_input)

    @classmethod
    def of_backbone(cls, backbone: str | Path, clip: str) -> ClipScorer:
        """Load a CLIP from a subfolder of a backbone, whose tokenizer it has, or from a folder or hub id of its own."""
        inside = Path(backbone) / clip
        if inside.is_dir():
            return cls.from_pretrained(inside, Path(backbone) / "tokenizer")
        return cls.from_pretrained(clip)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def embed_subjects(self, pictures: Tensor) -> Tensor:
        """Unit picture embeddings (B, D)."""
        return self.embed_views([self.picture_input(pictures.to(self.device))])

    @torch.no_grad()
    def embed_views(self, views: Sequence[Tensor]) -> Tensor:
        """Unit picture embeddings (B, D) of outputs of `picture_input`; the original pictures may differ in size."""
        pooled = self.clip.vision_model(pixel_values=torch.cat(list(views)).to(self.device)).pooler_output
        return F.normalize(self.clip.visual_projection(pooled).float(), dim=-1)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit text embeddings (B, D); a prompt that is too long is cut."""
        longest = self.clip.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )
        pooled = self.clip.text_model(input_ids=tokens["input_ids"].to(self.device)).pooler_output
        return F.normalize(self.clip.text_projection(pooled).float(), dim=-1)

    def text_alignment(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """CLIP-T of each picture with its own prompt: (B,)."""
        return (self.embed_subjects(pictures) * self.embed_prompts(prompts)).sum(-1)


class DinoScorer(nn.Module):
    """DINO-I: cosine of the class tokens of a self-supervised ViT (DreamBooth, Sec. 4.2: ViT-S/16)."""

    def __init__(self, encoder: nn.Module, picture_input: PictureInput) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.picture_input = picture_input

    @classmethod
    def from_pretrained(cls, name: str | Path) -> DinoScorer:
        """Load a DINO or DINOv2 from a hub id or a folder. Pictures are resized to 224 pixels."""
        location, revision = split_revision(name)
        return cls(AutoModel.from_pretrained(location, **revision), PictureInput.from_pretrained(name, 224))

    @torch.no_grad()
    def embed_subjects(self, pictures: Tensor) -> Tensor:
        """Unit class tokens (B, D)."""
        device = next(self.parameters()).device
        states = self.encoder(pixel_values=self.picture_input(pictures.to(device))).last_hidden_state
        return F.normalize(states[:, 0].float(), dim=-1)


class JudgeScorer(nn.Module):
    """Subject similarity and prompt fidelity by the microworld's independent judge."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder: Path) -> JudgeScorer:
        """Load the judge from the folder `judge` of the micro backbone."""
        return cls(Judge.from_pretrained(folder))

    @torch.no_grad()
    def assess(self, pictures: Tensor, cover: Tensor | None = None) -> Verdict:
        """The judge's verdict at its training size; `cover` (B, 1, H / 4, W / 4) replaces its own mask."""
        if pictures.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            pictures = F.interpolate(pictures, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
        device = next(self.parameters()).device
        return self.judge(pictures.clamp(0, 1).to(device) * 2 - 1, cover)

    def appearances(self, pictures: Tensor) -> list[Appearance]:
        """Pattern and colours of the objects of pictures (B, 3, H, W)."""
        verdict = self.assess(pictures)
        answers = (verdict.pattern, verdict.colour, verdict.second_colour)
        return [
            Appearance(
                pattern=PATTERN_NAMES[pattern], colour=COLOUR_NAMES[colour], second_colour=SECOND_COLOUR_NAMES[second]
            )
            for pattern, colour, second in torch.stack([logits.argmax(-1) for logits in answers], 1).tolist()
        ]

    def embed_subjects(self, pictures: Tensor) -> Tensor:
        """Unit identity embeddings (B, D) of the objects."""
        return self.assess(pictures).identity

    def embed_regions(self, pictures: Tensor, regions: Tensor) -> Tensor:
        """Unit identity embeddings (B, D) of the objects where the regions (B, G, G') are True."""
        cover = self.assess(pictures).mask.sigmoid()
        inside = F.interpolate(regions[:, None].to(cover), cover.shape[-2:], mode="area")
        return self.assess(pictures, cover * inside).identity

    def background_probability(self, pictures: Tensor, backgrounds: Sequence[str]) -> Tensor:
        """Probability (B,) that each picture has the background that its prompt names, by the judge."""
        probability = self.assess(pictures).background.softmax(-1)
        wanted = torch.tensor([BACKGROUNDS.index(background) for background in backgrounds], device=probability.device)
        return probability.gather(1, wanted[:, None])[:, 0]

    def subject_region(self, pictures: Tensor) -> Tensor:
        """The region (B, H, W) of the object, True on it."""
        cover = self.assess(pictures).mask.sigmoid()
        return F.interpolate(cover, pictures.shape[-2:], mode="bilinear")[:, 0] > _SUBJECT_THRESHOLD

    def object_mask(self, pictures: Tensor, grid: tuple[int, int]) -> Tensor:
        """The positions of a grid of which the object covers more than half: (B, G, G')."""
        cover = self.assess(pictures).mask.sigmoid()
        return F.interpolate(cover, grid, mode="area")[:, 0] > 0.5


def mask_iou(masks: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union (B,) of the positions where a mask is above 0 with the object's own.

    Args:
        masks: M_hat (B, G, G').
        truth: (B, G, G'), True on the object, which covers at least one position.
    """
    chosen = masks > 0
    return (chosen & truth).sum((1, 2)) / (chosen | truth).sum((1, 2))


def largest_iou(masks: Tensor, truth: Tensor) -> Tensor:
    """Upper bound (B,) of the IoU of masks with the same number of positions: that of two nested sets."""
    chosen, wanted = (masks > 0).sum((1, 2)), truth.sum((1, 2))
    return torch.minimum(chosen, wanted) / torch.maximum(chosen, wanted)


def subject_similarity(generated: Tensor, views: Sequence[Tensor]) -> Tensor:
    """Mean cosine (B,) of each generated picture with all views of its subject (CLIP-I, DINO-I, the judge's).

    Args:
        generated: Unit embeddings (B, D) of the generated pictures.
        views: For each of them, the unit embeddings (V, D) of real pictures; V may differ between subjects.
    """
    return torch.stack([(own @ picture).mean() for picture, own in zip(generated, views, strict=True)])


def background_change(pictures: Tensor, plain: Tensor, subject: Tensor) -> Tensor:
    """Mean absolute difference (B,), outside the subject, to the picture from text alone and the same noise.

    Mask guidance aims to lower it: outside the subject, the prompt alone should decide.

    Args:
        pictures: (B, 3, H, W).
        plain: (B, 3, H, W), the pictures from text alone.
        subject: (B, H, W), True where either picture shows the subject. Where it is True everywhere, the result is 0.
    """
    outside = (~subject).float()
    difference = (pictures - plain).abs().mean(1) * outside
    return difference.sum((1, 2)) / outside.sum((1, 2)).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """As "0.51 (0.40 to 0.63)", each number in the format."""
        return f"{self.mean:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def bootstrap_interval(
    values: ArrayLike, clusters: Sequence[str], *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap over clusters (Efron & Tibshirani 1993, Ch. 13): it resamples subjects, not pictures.

    Pictures of one subject are correlated; resampling single pictures would make the interval too narrow.

    Args:
        values: One number for each picture, or differences between two arms for paired pictures.
        clusters: The subject of each picture.
        resamples: Number of resamples.
        confidence: Share of the resampled means between the bounds.
        seed: Seed of the resampling.

    Raises:
        ValueError: `values` is empty.
    """
    return bootstrap_ratio(values, np.ones(len(clusters)), clusters, resamples, confidence, seed)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Sequence[str],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The sum of `numerators` over that of `denominators`, with an interval as in `bootstrap_interval`.

    Raises:
        ValueError: There are no values.
    """
    above, below = (np.asarray(values, dtype=np.float64) for values in (numerators, denominators))
    if not len(above):
        raise ValueError("bootstrap: no values to average")
    members = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, counts = (np.bincount(members, weights=values) for values in (above, below))
    draws = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    ratios = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=float(above.sum() / below.sum()), low=float(low), high=float(high))
