"""How like the subject a picture is, how well it obeys its prompt, and how sure we are of the averages.

Legend: B pictures, V views of one subject, D width of an embedding, H and W pixels. Pictures are (B, 3, H, W),
RGB in [0, 1].

The papers' numbers are CLIP-T, CLIP-I and DINO-I (RealCustom++, Sec. IV-A; DreamBooth, Sec. 4.2). CLIP-I and DINO-I
compare whole pictures here, as DreamBooth does; RealCustom++ segments the subjects first. The microworld has an
independent judge of its own (`model/micro_sd/judge.py`), whose numbers stand for both.
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

from model.adapters.image_encoder import normalization
from model.micro_sd.architectures import IMAGE_SIZE
from model.micro_sd.judge import Judge, Verdict
from model.microworld.backgrounds import BACKGROUNDS

_SUBJECT_THRESHOLD = 0.2  # of the judge's cover: low, so that soft edges count as subject and not as changed ground


class SubjectEmbedder(Protocol):
    """Whatever turns pictures into vectors whose cosine says how alike their subjects are."""

    def embed_subjects(self, pictures: Tensor) -> Tensor:
        """Unit vectors (B, D) of pictures in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """How an encoder wants its pictures: a square of `side` pixels, normalised by channel."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_pretrained(cls, name: str | Path, side: int) -> PictureInput:
        """The normalisation that the encoder's own configuration names."""
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
        """Load a CLIP from a hub id or a folder; `tokenizer` names another place for the tokenizer."""
        clip = CLIPModel.from_pretrained(name)
        picture_input = PictureInput.from_pretrained(name, clip.config.vision_config.image_size)
        return cls(clip, AutoTokenizer.from_pretrained(tokenizer or name), picture_input)

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
        """Unit picture embeddings (B, D) of what `picture_input` has made of pictures, which may differ in size."""
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
        """Load a DINO or DINOv2 from a hub id or a folder. Pictures are seen at 224 pixels."""
        return cls(AutoModel.from_pretrained(name), PictureInput.from_pretrained(name, 224))

    @torch.no_grad()
    def embed_subjects(self, pictures: Tensor) -> Tensor:
        """Unit class tokens (B, D)."""
        device = next(self.parameters()).device
        states = self.encoder(pixel_values=self.picture_input(pictures.to(device))).last_hidden_state
        return F.normalize(states[:, 0].float(), dim=-1)


class JudgeScorer(nn.Module):
    """The microworld's independent judge: whose picture is it, and is the ground the one that was asked for."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder: Path) -> JudgeScorer:
        """Load the judge from the folder `judge` of the micro backbone."""
        return cls(Judge.from_pretrained(folder))

    @torch.no_grad()
    def look(self, pictures: Tensor, cover: Tensor | None = None) -> Verdict:
        """What the judge sees, at the size that it was trained on; `cover` (B, 1, H / 4, W / 4) says where to look."""
        if pictures.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            pictures = F.interpolate(pictures, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
        device = next(self.parameters()).device
        return self.judge(pictures.clamp(0, 1).to(device) * 2 - 1, cover)

    def embed_subjects(self, pictures: Tensor) -> Tensor:
        """Unit identity embeddings (B, D) of the objects."""
        return self.look(pictures).identity

    def embed_regions(self, pictures: Tensor, regions: Tensor) -> Tensor:
        """Unit identity embeddings (B, D) of the objects inside regions (B, G, G') that are True there."""
        cover = self.look(pictures).mask.sigmoid()
        inside = F.interpolate(regions[:, None].to(cover), cover.shape[-2:], mode="area")
        return self.look(pictures, cover * inside).identity

    def background_probability(self, pictures: Tensor, grounds: Sequence[str]) -> Tensor:
        """The probability that the judge gives to each picture's own ground: (B,)."""
        probability = self.look(pictures).background.softmax(-1)
        wanted = torch.tensor([BACKGROUNDS.index(ground) for ground in grounds], device=probability.device)
        return probability.gather(1, wanted[:, None])[:, 0]

    def subject_region(self, pictures: Tensor) -> Tensor:
        """Where the object is: (B, H, W), True on it."""
        cover = self.look(pictures).mask.sigmoid()
        return F.interpolate(cover, pictures.shape[-2:], mode="bilinear")[:, 0] > _SUBJECT_THRESHOLD

    def object_mask(self, pictures: Tensor, grid: tuple[int, int]) -> Tensor:
        """Which positions of a grid the object takes more than half of: (B, G, G')."""
        cover = self.look(pictures).mask.sigmoid()
        return F.interpolate(cover, grid, mode="area")[:, 0] > 0.5


def mask_iou(masks: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of the positions where masks M_hat (B, G, G') are above 0 with the objects' own: (B,).

    Args:
        masks: (B, G, G').
        truth: (B, G, G'), True on the object, which takes at least one position.
    """
    chosen = masks > 0
    return (chosen & truth).sum((1, 2)) / (chosen | truth).sum((1, 2))


def largest_iou(masks: Tensor, truth: Tensor) -> Tensor:
    """The IoU of a mask with as many positions that lies as well as it can: that of two nested sets. (B,)."""
    chosen, wanted = (masks > 0).sum((1, 2)), truth.sum((1, 2))
    return torch.minimum(chosen, wanted) / torch.maximum(chosen, wanted)


def subject_similarity(generated: Tensor, views: Sequence[Tensor]) -> Tensor:
    """Mean cosine between each generated picture and every view of its subject (CLIP-I, DINO-I, the judge's): (B,).

    Args:
        generated: Unit embeddings of the generated pictures.
        views: For each of them the unit embeddings (V, D) of real pictures; V may differ between subjects.
    """
    return torch.stack([(own @ picture).mean() for picture, own in zip(generated, views, strict=True)])


def background_change(pictures: Tensor, plain: Tensor, subject: Tensor) -> Tensor:
    """Mean absolute difference outside the subject to the picture painted without it from the same noise: (B,).

    What mask guidance is for: whatever is not the subject should stay as the prompt alone would have it. `subject`
    is True where either picture shows the subject; a picture that is all subject has no ground to change: 0.
    """
    outside = (~subject).float()
    difference = (pictures - plain).abs().mean(1) * outside
    return difference.sum((1, 2)) / outside.sum((1, 2)).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the bounds between which it would fall in 95 % of repetitions with other subjects."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: ArrayLike, clusters: Sequence[str], *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap over clusters (Efron & Tibshirani 1993, Ch. 13): whole subjects are drawn, not pictures.

    Pictures of one subject resemble one another; drawing them one by one would make the interval too narrow.

    Args:
        values: One number a picture, or differences between two arms for paired pictures.
        clusters: The subject of each picture.
        resamples: How many times the subjects are drawn.
        confidence: The share of resampled means between the bounds.
        seed: Of the draws.

    Raises:
        ValueError: There is nothing to average.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        raise ValueError("bootstrap_interval: no values to average")
    members = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(members, weights=numbers)
    counts = np.bincount(members)
    draws = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=float(numbers.mean()), low=float(low), high=float(high))
