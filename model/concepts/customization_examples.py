"""The examples of a customization: pictures with prompts, class pictures, and context-rich prompts.

Each is drawn by a generator of its own from (seed, step, slot, purpose): a batch does not depend on the number of
workers, and an option, such as the MLM loss, changes no other draw.

Legend of shapes: B examples of one worker, n tokens of a padded prompt, h, w latent grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from model.backbone import Backbone
from model.concepts.concept import ConceptError
from model.concepts.contextualizer import FrozenText, draw_masked
from model.concepts.customization_settings import ConceptSubject, CustomizationSettings
from model.concepts.picture_latents import PictureLatents
from model.concepts.resizing import Resized, draw_resized, loss_mask
from model.concepts.training_prompts import check_lengths, class_prompts, picture_prompts, size_words
from model.seeding import generator_of

#: The names of the ids of a prompt in a batch, for each text encoder.
IDS = ("ids", "ids_2")

#: By the words for a picture's size the prompts that each picture may get.
Prompts = Mapping[str, Sequence[Sequence[str]]]


class DiffusionExamples:
    """Pictures with their prompts, noised.

    Args:
        backbone: Its tokenizers know the placeholders.
        groups: For each subject its pictures and their prompts. An example is of each subject with the same
            probability.
        purpose: Of the random numbers; begins the names in a batch.
    """

    def __init__(self, backbone: Backbone, groups: Sequence[tuple[Sequence[bytes], Prompts]], purpose: str) -> None:
        self._backbone, self._purpose = backbone, purpose
        self.latents = PictureLatents(backbone, [picture for pictures, _ in groups for picture in pictures])
        by_words = {words: [listed for _, own in groups for listed in own[words]] for words in groups[0][1]}
        self._first = [sum(len(p) for p, _ in groups[:number]) for number in range(len(groups))]
        self._sizes = [len(pictures) for pictures, _ in groups]
        texts = list(dict.fromkeys(prompt for prompts in by_words.values() for listed in prompts for prompt in listed))
        self._ids = backbone.token_ids(texts)
        self._prompts = {
            words: [[texts.index(prompt) for prompt in listed] for listed in prompts]
            for words, prompts in by_words.items()
        }

    def batch(
        self, seed: int, step: int, slots: range, flip: float, crop: float, resize: bool = False
    ) -> dict[str, Tensor]:
        """latents, noise (B, 4, h, w), timesteps, pictures (B,), ids (B, n), for SDXL ids_2 (B, n).

        With `resize` also loss_mask (B, 1, h, w).
        """
        sizes = [self._draw_resized(seed, step, slot) if resize else None for slot in slots]
        views, rows, timesteps = [], [], []
        length = self._backbone.scheduler.config.num_train_timesteps
        generators = [generator_of(seed, step, slot, self._purpose) for slot in slots]
        for generator, size in zip(generators, sizes, strict=True):
            group = _draw(len(self._sizes), generator)
            picture = self._first[group] + _draw(self._sizes[group], generator)
            words = size.words if size is not None and size.words in self._prompts else ""
            prompts = self._prompts[words][picture]
            rows.append(prompts[_draw(len(prompts), generator)])
            timesteps.append(_draw(length, generator))
            views.append(self.latents.draw(picture, flip, crop, generator)._replace(resized=size))
        latents = self.latents.latents(views)
        noises = [torch.randn(latents.shape[1:], generator=generator) for generator in generators]
        tensors = {
            "latents": latents,
            "noise": torch.stack(noises),
            "timesteps": torch.tensor(timesteps),
            "pictures": torch.tensor([view.picture for view in views]),
            **{name: ids[rows] for name, ids in zip(IDS, self._ids, strict=False)},
        }
        if resize:
            square, scale = self.latents.side, self._backbone.latent_scale
            tensors["loss_mask"] = torch.stack([loss_mask(size, square, scale) for size in sizes if size])
        return {f"{self._purpose}{name}": tensor for name, tensor in tensors.items()}

    def _draw_resized(self, seed: int, step: int, slot: int) -> Resized:
        generator = generator_of(seed, step, slot, f"{self._purpose}resize")
        return draw_resized(self.latents.side, self._backbone.latent_scale, generator)


class RichPrompts:
    """Context-rich prompts of the MLM loss (Contextualizer, Algorithm 2).

    Args:
        text: The text encoder that the contextualizer reads.
        prompts: With the placeholders.
        placeholders: Never masked.
        layers: Of XTI, of which one is drawn for each prompt; 1 for other methods.
    """

    def __init__(self, text: FrozenText, prompts: Sequence[str], placeholders: Sequence[str], layers: int) -> None:
        self._ids, self._layers = text.ids(prompts or [""]), layers
        concepts = [index for one in placeholders for index in _placeholder_ids(text.tokenizer, one)]
        if not torch.isin(self._ids, torch.tensor(concepts)).any():
            raise ConceptError(f"the MLM loss needs context-rich prompts with {' or '.join(placeholders)}.")
        self._never = [*text.special, *concepts]

    def batch(self, seed: int, step: int, slots: range, mask_rate: float) -> dict[str, Tensor]:
        """rich_ids (B, n), masked (B, n) bool, layers (B,)."""
        generators = [generator_of(seed, step, slot, "rich") for slot in slots]
        ids = self._ids[[_draw(len(self._ids), generator) for generator in generators]]
        layers = torch.tensor([_draw(self._layers, generator) for generator in generators])
        return {"rich_ids": ids, "masked": draw_masked(ids, self._never, mask_rate, generators), "layers": layers}


def subject_examples(backbone: Backbone, subjects: Sequence[ConceptSubject], sized: bool) -> DiffusionExamples:
    """The subjects' pictures; `sized`: templates get words for the size of a resized picture.

    Raises:
        ModelError: A picture or a caption cannot be used.
    """
    for subject in subjects:
        for tokenizer in backbone.tokenizers:
            check_lengths(tokenizer, subject, sized)
    groups = [(one.pictures, {words: picture_prompts(one, words) for words in size_words(sized)}) for one in subjects]
    return DiffusionExamples(backbone, groups, "")


def _placeholder_ids(tokenizer: Any, placeholder: str) -> list[int]:
    return list(tokenizer(placeholder, add_special_tokens=False).input_ids)


def class_examples(backbone: Backbone, subjects: Sequence[ConceptSubject]) -> DiffusionExamples:
    """The class pictures of the subjects that have some.

    Raises:
        ModelError: There are none, or one cannot be used.
    """
    groups = [(one.class_pictures, {"": [[prompt] for prompt in class_prompts(one)]}) for one in subjects]
    if not any(pictures for pictures, _ in groups):
        raise ConceptError("prior preservation needs class pictures.")
    return DiffusionExamples(backbone, [group for group in groups if group[0]], "class_")


def slots_of(settings: CustomizationSettings, rank: int, world: int) -> range:
    """The examples of a step that a worker makes.

    Raises:
        ConceptError: They cannot be divided evenly among the workers.
    """
    if settings.batch_size % world:
        raise ConceptError(f"a step's {settings.batch_size} pictures cannot be divided evenly among {world} workers.")
    share = settings.batch_size // world
    return range(rank * share, (rank + 1) * share)


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
