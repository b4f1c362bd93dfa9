"""The losses of a customization, through the frozen parts of the backbone.

    L = L_diff(pictures) + w L_diff(class pictures) + lambda L_MLM(context-rich prompts)

L_diff is that of the method, with templates, captions, or ICO's contexts as prompts. The second term is DreamBooth's
prior preservation, the third one the Contextualizer's (Algorithm 2; its line 11 omits psi by mistake). psi and p_mask
are frozen: the MLM loss changes what the method trains. Of SDXL's two text encoders it reads the first one, for which
the contextualizer was trained.

Legend of shapes: B batch, n tokens of a padded prompt, L cross-attention layers, h, w latent grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from model.backbone import Backbone, PromptEmbedding
from model.concepts.concept import Concept
from model.concepts.contextualizer import Contextualizer, FrozenText, mlm_loss, padding_of, tokens_masked
from model.concepts.customization_examples import IDS
from model.concepts.customization_settings import ConceptSubject, CustomizationSettings
from model.concepts.ico import CONTEXT_RATE, ImageSpecificContexts, context_prompt
from model.concepts.learned_weights import LearnedConcept
from model.concepts.model_parts import ModelParts
from model.training.diffusion_loss import diffusion_target, squared_errors


class CustomizationModule(nn.Module):
    """What a customization trains, with its losses. The frozen models are no submodules.

    Args:
        backbone: Gets the placeholders, and hooks that stay; without gradients it paints with what has been learned.
        subjects: One, or several that are learned together.
        settings: Of the customization.
        seed: Of the initial weights.
        contextualizer: psi and p_mask; needed with `settings.mlm`.

    Raises:
        ConceptError: A subject does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        subjects: Sequence[ConceptSubject],
        settings: CustomizationSettings,
        seed: int,
        contextualizer: Contextualizer | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        parts = ModelParts.of(backbone)
        self.layers = len(parts.cross_attention()) if settings.method == "xti" else 1
        text = FrozenText(backbone.tokenizers[0], backbone.text_encoders[0], backbone.family)
        # psi's classifier stays tied to the table with which it was trained.
        table = text.encoder.get_input_embeddings().weight.detach()
        self.frozen = (backbone, contextualizer, text, table.clone() if settings.full else table)
        self.learned = LearnedConcept(parts, subjects, settings, seed)
        own = _contexts(backbone, subjects, settings) if settings.prompts == "ico" else []
        self._contexts, self.contexts = tuple(own), nn.ModuleList(own)
        self.to(backbone.device)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """loss, and its terms: diffusion; class with class pictures; mlm, without lambda.

        Args:
            batch: As made by `CustomizationTask.batch`.
        """
        settings = self.settings
        terms = self._diffusion(batch)
        loss = terms["diffusion"]
        if "class" in terms:
            loss = loss + settings.prior_weight * terms["class"]
        if settings.mlm:
            terms["mlm"] = self._mlm(batch["rich_ids"], batch["masked"], batch["layers"])
            loss = loss + settings.mlm_weight * terms["mlm"]
        return {"loss": loss, **terms}

    def concept(self, backbone: str) -> Concept:
        """What has been learned, without ICO's contexts; `backbone` is a name for people."""
        return self.learned.concept(backbone)

    def rates(self) -> dict[str, float]:
        """The factors of the learning rate by the parameters' names, where they are not 1."""
        return {f"contexts.{name}": CONTEXT_RATE for name, _ in self.contexts.named_parameters()}

    def _diffusion(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The diffusion loss of the pictures, and of the class pictures if there are some, in one pass of the UNet."""
        backbone = self.frozen[0]
        kinds = {"": "diffusion", "class_": "class"} if "class_latents" in batch else {"": "diffusion"}
        latents, noise, timesteps = (
            torch.cat([batch[f"{kind}{name}"] for kind in kinds]) for name in ("latents", "noise", "timesteps")
        )
        prompt = PromptEmbedding.cat([self._encode(batch, kind) for kind in kinds])
        noisy = backbone.scheduler.add_noise(latents, noise, timesteps)
        predicted = backbone.predict(noisy, timesteps, prompt).float()
        target = diffusion_target(backbone.scheduler, latents, noise, timesteps)
        mask = batch.get("loss_mask")
        if mask is not None and "class_" in kinds:
            mask = torch.cat([mask, torch.ones_like(mask)])
        losses = squared_errors(predicted, target, mask)
        return {name: part.mean() for name, part in zip(kinds.values(), losses.chunk(len(kinds)), strict=True)}

    def _encode(self, batch: Mapping[str, Tensor], kind: str) -> PromptEmbedding:
        backbone = self.frozen[0]
        side = batch["latents"].shape[-1] * backbone.latent_scale
        ids = [batch[f"{kind}{name}"] for name, _ in zip(IDS, backbone.text_encoders, strict=False)]
        with ExitStack() as stack:
            if kind == "" and self._contexts:
                pictures = batch["pictures"]
                ids = [contexts.ids[pictures] for contexts in self._contexts]
                for encoder, contexts in zip(backbone.text_encoders, self._contexts, strict=True):
                    stack.enter_context(contexts.in_place(encoder, pictures))
            return backbone.encode_ids(ids, (side, side))

    def _mlm(self, ids: Tensor, masked: Tensor, layers: Tensor) -> Tensor:
        """L_MLM of prompts (B, n); of XTI with the vectors of one layer (B,) for each."""
        _, contextualizer, text, table = self.frozen
        assert contextualizer is not None
        with tokens_masked(contextualizer, text, masked):
            states = text.states(ids)
        by_layer = states.unflatten(1, (self.layers, -1))
        context = by_layer[torch.arange(len(ids), device=ids.device), layers]
        return mlm_loss(contextualizer(context, padding_of(ids, text.end), table), ids, masked)


def _contexts(
    backbone: Backbone, subjects: Sequence[ConceptSubject], settings: CustomizationSettings
) -> list[ImageSpecificContexts]:
    """The contexts of all subjects' pictures for each text encoder."""
    counts = settings.context_before, settings.context_after
    found = []
    for tokenizer, encoder in zip(backbone.tokenizers, backbone.text_encoders, strict=True):
        prompts = [
            context_prompt(tokenizer, subject.placeholder, subject.word, *counts)
            for subject in subjects
            for _ in subject.pictures
        ]
        found.append(ImageSpecificContexts(encoder, prompts))
    return found
