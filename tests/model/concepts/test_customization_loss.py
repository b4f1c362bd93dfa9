"""The losses of a customization against plain statements of them, by concepts that are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.backbone import Backbone, PromptEmbedding, load_backbone
from model.concepts.concept import Concept
from model.concepts.contextualizer import Contextualizer, FrozenText, mlm_loss
from model.concepts.loading import load_concept, unload_concepts
from model.training.diffusion_loss import diffusion_target
from tests.support.customization import METHODS, make_task, train, write_contextualizer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"), [*(("sd", method) for method in METHODS if method != "several_vectors"), ("sdxl", "xti")]
)
def test_the_terms(kind: str, method: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each example by itself, with the concept loaded into a backbone of its own."""
    folder: Path = request.getfixturevalue(f"{kind}_folder")
    psi_folder = write_contextualizer(folder, tmp_path)
    prior = 0.7 if METHODS[method]["method"] in ("dreambooth", "custom_diffusion") else 0.0
    task = make_task(folder, psi_folder, **METHODS[method], prior_weight=prior)
    module = train(task, steps=2)
    batch = task.batch(7, 0, 1)
    with torch.no_grad():
        found = module(batch)
    backbone, concept = load_backbone(folder), module.concept("")
    load_concept(backbone, concept)
    for part, name in (("", "diffusion"), ("class_", "class")):
        if f"{part}latents" in batch:
            expected = [diffusion(backbone, batch, part, row) for row in range(2)]
            torch.testing.assert_close(found[name], torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    assert ("loss_mask" in batch) == (method == "custom_diffusion")
    psi = Contextualizer.from_pretrained(psi_folder)
    torch.testing.assert_close(found["mlm"], mlm(folder, concept, psi, batch), rtol=1e-4, atol=1e-5)
    weighted = found["diffusion"] + prior * found.get("class", 0.0) + 0.1 * found["mlm"]
    torch.testing.assert_close(found["loss"], weighted)


def diffusion(backbone: Backbone, batch: dict[str, Tensor], kind: str, row: int) -> Tensor:
    latents, noise, timesteps = (batch[f"{kind}{name}"][row : row + 1] for name in ("latents", "noise", "timesteps"))
    ids = [batch[f"{kind}{name}"][row : row + 1] for name in ("ids", "ids_2") if f"{kind}{name}" in batch]
    prompt: PromptEmbedding = backbone.encode_ids(ids)
    with torch.no_grad():
        predicted = backbone.predict(backbone.scheduler.add_noise(latents, noise, timesteps), timesteps, prompt)
    target = diffusion_target(backbone.scheduler, latents, noise, timesteps)
    if f"{kind}loss_mask" not in batch:
        return F.mse_loss(predicted, target)
    counts = batch[f"{kind}loss_mask"][row, 0].bool()
    return F.mse_loss(predicted[0][:, counts], target[0][:, counts])


@torch.no_grad()
def mlm(folder: Path, concept: Concept, psi: Contextualizer, batch: dict[str, Tensor]) -> Tensor:
    """Of XTI each prompt with the vectors of its layer, as Textual Inversion."""
    ids, masked = batch["rich_ids"], batch["masked"]
    backbone, logits = load_backbone(folder), []
    table = backbone.text_encoders[0].get_input_embeddings().weight.clone()  # psi stays tied to this one
    for row, layer in enumerate(batch["layers"].tolist()):
        token = concept.tokens[0]
        if token.layer_embeddings:
            vectors = list(token.layer_embeddings.values())[layer]
            plain = type(token)(placeholder=token.placeholder, word="cat", subject="", embeddings=vectors)
            concept_of_row = Concept(method="", backbone="", tokens=(plain,))
        else:
            concept_of_row = concept
        load_concept(backbone, concept_of_row)
        text = FrozenText(backbone.tokenizers[0], backbone.text_encoders[0], backbone.family)
        one = slice(row, row + 1)
        logits.append(_logits(psi, text, ids[one], masked[one], table))
        unload_concepts(backbone)
    return mlm_loss(torch.cat(logits), ids, masked)


def _logits(psi: Contextualizer, text: FrozenText, ids: Tensor, masked: Tensor, table: Tensor) -> Tensor:
    """psi(Gamma(P_masked)), by hand."""
    embedded = text.encoder.get_input_embeddings()(ids)
    embedded[masked] = psi.mask_embedding
    hook = text.encoder.get_input_embeddings().register_forward_hook(lambda *_: embedded)
    states = text.states(ids)
    hook.remove()
    ends = (ids == text.end).int().argmax(1)
    padding = torch.arange(ids.shape[1])[None] > ends[:, None]
    return psi(states, padding, table)
