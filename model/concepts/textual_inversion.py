"""Textual Inversion of one concept with the MLM loss (Contextualizer, Algorithm 2; Gal et al. 2022).

Only the concept's token embedding is trained:

    L = L_diff(context-simple prompt, the subject's pictures) + lambda L_MLM(context-rich prompt)

The UNet, the text encoder, psi and p_mask are frozen. (Line 11 of Algorithm 2 omits psi by mistake.) Each of SDXL's two
text encoders has its own embedding; the MLM loss applies to the first one, for which the contextualizer was trained.

Legend of shapes: B batch, n tokens of a padded prompt, c width of a text encoder, h, w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone import Backbone, PromptEmbedding
from model.concepts.concept import Concept, ConceptError, ConceptToken
from model.concepts.contextualizer import (
    Contextualizer,
    FrozenText,
    draw_masked,
    embeddings_replaced,
    mlm_logits,
    mlm_loss,
)
from model.seeding import generator_of
from model.training.diffusion_loss import diffusion_target
from model.training.precision import mixed_precision

#: Context-simple prompts; {} is the concept.
SIMPLE_PROMPTS = ("a photo of a {}", "a picture of a {}", "a close photo of a {}", "a photo of the {}")


@dataclass(frozen=True, kw_only=True)
class InversionSettings:
    """How a concept is learned.

    Attributes:
        placeholder: The new token V*.
        word: The class word: the embedding starts from it, and prompts name it after the placeholder.
        mlm_weight: lambda.
        mask_rate: Share of the context-rich prompts' tokens that are masked.
    """

    placeholder: str
    word: str
    steps: int
    batch_size: int
    learning_rate: float
    mlm_weight: float
    mask_rate: float
    seed: int


@dataclass(frozen=True)
class InversionStep:
    """The losses of one step of the optimizer."""

    step: int  # from 1
    diffusion: float  # L_diff
    mlm: float  # L_MLM, without lambda


def add_token(text: FrozenText, placeholder: str, word: str) -> int:
    """Add the token `placeholder` to a tokenizer and its encoder, with the embedding of `word`; returns its id.

    Raises:
        ConceptError: the placeholder is a token already, or the word is not in the vocabulary.
    """
    tokenizer, encoder = text.tokenizer, text.encoder
    word_ids = tokenizer(word, add_special_tokens=False).input_ids
    if not word_ids or tokenizer.unk_token_id in word_ids:
        raise ConceptError(f"the class word {word!r} is not in the text encoder's vocabulary; choose a common noun.")
    if tokenizer.add_tokens([placeholder]) != 1:
        raise ConceptError(f"the placeholder {placeholder!r} is a token already; choose another.")
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table: Tensor = encoder.get_input_embeddings().weight
    concept = int(tokenizer.convert_tokens_to_ids(placeholder))
    with torch.no_grad():
        table[concept] = table[word_ids].mean(0)
    table.requires_grad_(False)
    return concept


class TextualInversion(nn.Module):
    """The concept's embedding for each text encoder, with the frozen models around it.

    Args:
        backbone: The placeholder is added to its tokenizers and text encoders.
        contextualizer: psi and p_mask of the first text encoder.
        latents: (N, 4, h, w) of the subject's pictures.
        rich_prompts: Context-rich prompts that contain the placeholder.
    """

    def __init__(
        self,
        backbone: Backbone,
        contextualizer: Contextualizer,
        latents: Tensor,
        rich_prompts: Sequence[str],
        settings: InversionSettings,
    ) -> None:
        super().__init__()
        self.frozen = (backbone, contextualizer.eval().requires_grad_(False))  # a tuple: no submodules
        self.texts = [
            FrozenText(*pair, backbone.family) for pair in zip(backbone.tokenizers, backbone.text_encoders, strict=True)
        ]
        self.concepts = [add_token(text, settings.placeholder, settings.word) for text in self.texts]
        rows = [
            text.encoder.get_input_embeddings().weight[i] for text, i in zip(self.texts, self.concepts, strict=True)
        ]
        self.embeddings = nn.ParameterList([nn.Parameter(row.detach().float().clone()) for row in rows])
        self.latents, self.settings = latents, settings
        name = f"{settings.placeholder} {settings.word}"
        self.simple = [prompt.format(name) for prompt in SIMPLE_PROMPTS]
        self.rich_ids = self.texts[0].ids(rich_prompts)
        self.device = backbone.device

    def forward(self, step: int) -> tuple[Tensor, Tensor]:
        """L_diff and L_MLM of one step, a function of (seed, step)."""
        generator = generator_of(self.settings.seed, step)
        with mixed_precision(self.device), self._concept_in_place():
            return self._diffusion_loss(generator), self._mlm_loss(generator)

    def concept(self, subject: str, backbone: str) -> Concept:
        """What has been learned; `subject` and `backbone` are names for people."""
        token = ConceptToken(
            placeholder=self.settings.placeholder,
            word=self.settings.word,
            subject=subject,
            embeddings=tuple(embedding.detach().cpu().clone()[None] for embedding in self.embeddings),
        )
        return Concept(method="textual_inversion", backbone=backbone, tokens=(token,))

    @contextmanager
    def _concept_in_place(self) -> Iterator[None]:
        """Within the block, the text encoders use the learned embeddings; their token embeddings do not change."""

        def replacing(concept: int, embedding: Tensor) -> Any:
            return lambda ids, read: torch.where((ids == concept)[..., None], embedding.to(read.dtype), read)

        with ExitStack() as stack:
            for text, concept, embedding in zip(self.texts, self.concepts, self.embeddings, strict=True):
                stack.enter_context(embeddings_replaced(text.encoder, replacing(concept, embedding)))
            yield

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(count, (self.settings.batch_size,), generator=generator)

    def _diffusion_loss(self, generator: torch.Generator) -> Tensor:
        backbone, _ = self.frozen
        latents = self.latents[self._draw(len(self.latents), generator)]
        prompts = [self.simple[i] for i in self._draw(len(self.simple), generator).tolist()]
        timesteps = self._draw(backbone.scheduler.config.num_train_timesteps, generator).to(self.device)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        noisy = backbone.scheduler.add_noise(latents, noise, timesteps)
        predicted = backbone.predict(noisy, timesteps, self._encode(prompts))
        return F.mse_loss(predicted.float(), diffusion_target(backbone.scheduler, latents, noise, timesteps))

    def _encode(self, prompts: list[str]) -> PromptEmbedding:
        """`Backbone.encode_prompt` with gradients."""
        backbone, _ = self.frozen
        hidden = torch.cat([text.states(text.ids(prompts).to(self.device)) for text in self.texts], dim=-1)
        added = {} if backbone.family == "sd" else backbone.encode_prompt(prompts).added_conditions
        return PromptEmbedding(hidden, added)

    def _mlm_loss(self, generator: torch.Generator) -> Tensor:
        _, contextualizer = self.frozen
        text, settings = self.texts[0], self.settings
        ids = self.rich_ids[self._draw(len(self.rich_ids), generator)]
        never = [*text.special, self.concepts[0]]
        masked = draw_masked(ids, never, settings.mask_rate, [generator] * len(ids)).to(self.device)
        ids = ids.to(self.device)
        return mlm_loss(mlm_logits(contextualizer, text, ids, masked), ids, masked)


def learn(inversion: TextualInversion) -> Iterator[InversionStep]:
    """Learn the concept and yield each step: AdamW, a constant rate, no weight decay (Gal et al. 2022)."""
    settings = inversion.settings
    optimizer = torch.optim.AdamW(inversion.embeddings.parameters(), settings.learning_rate, weight_decay=0.0)
    for step in range(settings.steps):
        diffusion, mlm = inversion(step)
        optimizer.zero_grad()
        (diffusion + settings.mlm_weight * mlm).backward()
        optimizer.step()
        yield InversionStep(step + 1, diffusion.item(), mlm.item())
