"""Masking, the loss and psi, on a tiny text encoder."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.backbone import load_backbone
from model.concepts.contextualizer import (
    Contextualizer,
    ContextualizerTask,
    FrozenText,
    draw_masked,
    embeddings_replaced,
    masked_accuracy,
    mlm_logits,
    mlm_loss,
    padding_of,
)
from model.errors import BackboneError
from model.seeding import generator_of

PROMPTS = ["a cat in a box", "in a cat", "a dog", "cat in cat in cat"]


@pytest.fixture
def text(sd_folder: Path) -> FrozenText:
    return FrozenText.load(str(sd_folder))


@pytest.fixture
def contextualizer(text: FrozenText) -> Contextualizer:
    torch.manual_seed(0)
    model = Contextualizer(16, text.encoder.config.vocab_size, num_layers=2, num_heads=2).eval()
    torch.nn.init.normal_(model.mask_embedding)
    return model


@given(st.floats(0, 1), st.integers(0, 10_000))
def test_tokens_are_masked_at_the_rate_and_special_ones_never(rate: float, seed: int) -> None:
    ids = torch.arange(12).repeat(200, 10)
    never = [0, 5, 11]
    masked = draw_masked(ids, never, rate, [generator_of(seed, row) for row in range(len(ids))])
    assert not masked[torch.isin(ids, torch.tensor(never))].any()
    free = masked[~torch.isin(ids, torch.tensor(never))].float()
    assert free.mean().item() == pytest.approx(rate, abs=5 * math.sqrt(0.25 / len(free)))


def test_masking_depends_on_the_generators_alone() -> None:
    ids = torch.arange(20).repeat(3, 1)
    first, again = (draw_masked(ids, [0], 0.5, [generator_of(1, row) for row in range(3)]) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_padding_is_what_follows_the_first_end_token(tokens: list[int]) -> None:
    end = 3
    first = tokens.index(end) if end in tokens else len(tokens)
    expected = [position > first for position in range(len(tokens))]
    assert padding_of(torch.tensor([tokens]), end).tolist() == [expected]


def test_mlm_loss_is_the_mean_at_masked_positions() -> None:
    logits, ids = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    masked = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]]).bool()
    surprises = [
        -logits[row, position].log_softmax(-1)[ids[row, position]]
        for row in range(2)
        for position in range(5)
        if masked[row, position]
    ]
    torch.testing.assert_close(mlm_loss(logits, ids, masked), torch.stack(surprises).mean())
    assert mlm_loss(logits, ids, torch.zeros_like(masked)).item() == 0


def test_masked_tokens_are_hidden_from_psi(text: FrozenText, contextualizer: Contextualizer) -> None:
    ids = text.ids(["a cat in"])
    other = ids.clone()
    other[0, 2] = text.ids(["in"])[0, 1]
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[0, 2] = True
    with torch.no_grad():
        hidden = [mlm_logits(contextualizer, text, variant, masked) for variant in (ids, other)]
        seen = [mlm_logits(contextualizer, text, variant, torch.zeros_like(masked)) for variant in (ids, other)]
    torch.testing.assert_close(hidden[0], hidden[1])
    assert not torch.allclose(seen[0], seen[1])


def test_psi_is_bidirectional_and_ignores_padding(contextualizer: Contextualizer) -> None:
    context, table = torch.randn(1, 6, 16), torch.randn(contextualizer.config["vocabulary"] + 3, 16)
    padding = torch.tensor([[False] * 4 + [True] * 2])
    with torch.no_grad():
        plain = contextualizer(context, padding, table)
        later, padded = context.clone(), context.clone()
        later[0, 3] += 1
        padded[0, 4:] += 1
        assert not torch.allclose(contextualizer(later, padding, table)[0, 0], plain[0, 0])
        torch.testing.assert_close(contextualizer(padded, padding, table)[0, :4], plain[0, :4])
    assert plain.shape == (1, 6, contextualizer.config["vocabulary"])


def test_replaced_embeddings_are_restored(text: FrozenText) -> None:
    ids = text.ids(["a cat"])
    before = text.encoder(input_ids=ids).last_hidden_state
    with embeddings_replaced(text.encoder, lambda read, embeddings: embeddings + 1):
        inside = text.encoder(input_ids=ids).last_hidden_state
    assert not torch.allclose(inside, before)
    torch.testing.assert_close(text.encoder(input_ids=ids).last_hidden_state, before)


def make_task(folder: Path) -> ContextualizerTask:
    return ContextualizerTask(backbone=str(folder), prompts=PROMPTS, batch_size=4, layers=1, mask_rate=0.3, seed=0)


def test_a_batch_does_not_depend_on_the_number_of_workers(sd_folder: Path) -> None:
    task = make_task(sd_folder)
    whole, halves = task.batch(2, 0, 1), [task.batch(2, rank, 2) for rank in range(2)]
    for name, tensor in whole.items():
        assert torch.equal(torch.cat([half[name] for half in halves]), tensor)
    with pytest.raises(ValueError, match=r"4 prompts .* 3 workers"):
        task.batch(0, 0, 3)


def test_only_psi_and_the_mask_embedding_learn(sd_folder: Path, tmp_path: Path) -> None:
    task = make_task(sd_folder)
    torch.manual_seed(0)
    module = task.module()
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    losses = []
    for step in range(60):
        scalars = module(task.batch(step, 0, 1))
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
        losses.append(scalars["loss"].item())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert all(name.startswith("contextualizer.") for name in start)
    assert not torch.equal(start["contextualizer.mask_embedding"], module.contextualizer.mask_embedding)
    assert all(parameter.grad is None for parameter in task.text().encoder.parameters())
    task.export(module, tmp_path)
    loaded = Contextualizer.from_pretrained(tmp_path).eval()
    found = masked_accuracy(loaded, task.text(), PROMPTS, PROMPTS, 0.3, batch_size=4)
    assert found.positions > 0
    assert 0 < found.contextualizer <= 1


def test_the_baselines_know_the_words_of_the_training_prompts(text: FrozenText, contextualizer: Contextualizer) -> None:
    """Of six words three are "cat", two "in" and one "a"; with every word of "cat in" masked, two positions."""
    found = masked_accuracy(contextualizer, text, ["cat cat in", "cat in a"], ["cat in"], rate=1.0, batch_size=1)
    assert found.positions == 2
    assert found.majority == pytest.approx(1 / 2)
    assert found.unigram == pytest.approx((3 / 6 + 2 / 6) / 2)


@pytest.mark.parametrize("batch_size", [2, 3, 4, 7, 8, 100])
def test_the_accuracy_does_not_depend_on_the_batches(
    text: FrozenText, contextualizer: Contextualizer, batch_size: int
) -> None:
    held_out = [*PROMPTS, "cat", "a dog in a box"] * 4
    one_by_one = masked_accuracy(contextualizer, text, PROMPTS, held_out, rate=0.5, batch_size=1)
    assert one_by_one.positions > 20
    assert masked_accuracy(contextualizer, text, PROMPTS, held_out, rate=0.5, batch_size=batch_size) == one_by_one
    assert masked_accuracy(contextualizer, text, PROMPTS, [], rate=0.5, batch_size=batch_size).positions == 0


@pytest.mark.parametrize("kind", ["sd_folder", "sdxl_folder"])
def test_psi_reads_the_states_that_the_unet_reads(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    text, backbone = FrozenText.load(str(folder)), load_backbone(folder)
    prompts = ["a cat in a box", "in"]
    states = text.states(text.ids(prompts))
    torch.testing.assert_close(states, backbone.encode_prompt(prompts).hidden[..., : states.shape[-1]])


def test_the_mask_embedding_starts_at_random_at_the_scale_of_the_token_embeddings(sd_folder: Path) -> None:
    torch.manual_seed(0)
    task = make_task(sd_folder)
    first, second = (task.module().contextualizer.mask_embedding for _ in range(2))
    assert not torch.equal(first, second)
    scale = task.text().encoder.get_input_embeddings().weight.std()
    assert 0.4 < first.std() / scale < 2.0


def test_a_backbone_without_a_text_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="there is no unet/"):
        FrozenText.load(str(tmp_path))
