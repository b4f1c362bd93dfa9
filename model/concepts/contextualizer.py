"""The contextualizer psi and the mask embedding p_mask, trained by masked language modelling (Contextualizer, Alg. 1).

Random tokens of a prompt are replaced by p_mask, the frozen text encoder Gamma encodes the result, and psi predicts the
masked tokens from Gamma's states: `C = Gamma(P_masked)`, `y = psi(C)`, cross-entropy at the masked positions.

Legend of shapes: B batch, n tokens of a padded prompt, c width of the text encoder, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedModel

from model.backbone import Family, load_part, load_tokenizer, read_family
from model.backbone_layout import check_backbone_files
from model.errors import ModelError
from model.seeding import generator_of


class Contextualizer(ModelMixin, ConfigMixin):
    """psi and p_mask. psi is bidirectional, because CLIP's attention is causal.

    The classifier is tied to the text encoder's token embeddings (V, c), which are passed in and stay frozen.

    Args:
        width: c.
        vocabulary: V.
        num_layers: transformer layers of psi.
        num_heads: of its attention.
    """

    @register_to_config
    def __init__(self, width: int, vocabulary: int, num_layers: int = 4, num_heads: int = 4) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.projection = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.mask_embedding = nn.Parameter(torch.zeros(width))

    def forward(self, context: Tensor, padding: Tensor, token_table: Tensor) -> Tensor:
        """psi's prediction of every token.

        Args:
            context: (B, n, c), states of the text encoder.
            padding: (B, n) bool, true after the end of a prompt.
            token_table: (V, c) or longer; added tokens, such as a concept's, are never predicted.

        Returns:
            Logits (B, n, V).
        """
        states = self.projection(self.transformer(context, src_key_padding_mask=padding))
        # Unit rows: the scale of trained token embeddings is arbitrary, and frequent tokens have longer rows.
        table = F.normalize(token_table[: self.config["vocabulary"]].float(), dim=-1)
        return states @ table.to(states.dtype).T + self.bias


def draw_masked(ids: Tensor, never: Sequence[int], rate: float, generators: Sequence[torch.Generator]) -> Tensor:
    """The tokens that are replaced by p_mask: each with probability `rate`, special and concept tokens never.

    Args:
        ids: (B, n).
        never: ids of the tokens that are never masked.
        rate: in [0, 1].
        generators: one for each prompt.

    Returns:
        (B, n) bool.
    """
    uniform = torch.stack([torch.rand(ids.shape[1], generator=generator) for generator in generators])
    return (uniform < rate) & ~torch.isin(ids, torch.tensor(list(never), dtype=ids.dtype))


def padding_of(ids: Tensor, end: int) -> Tensor:
    """(B, n) bool: the positions after the first end token."""
    ended = (ids == end).int().cumsum(1)
    return (ended - (ids == end).int()) > 0


@contextmanager
def embeddings_replaced(text_encoder: PreTrainedModel, replace: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Within the block, the text encoder uses `replace(ids, embeddings)` instead of its token embeddings.

    Works on any transformers text encoder and does not change its weights; gradients flow into the replacements.
    """
    table: Any = text_encoder.get_input_embeddings()
    hook = table.register_forward_hook(lambda module, args, output: replace(args[0], output))
    try:
        yield
    finally:
        hook.remove()


def mlm_logits(contextualizer: Contextualizer, text: FrozenText, ids: Tensor, masked: Tensor) -> Tensor:
    """psi(Gamma(P_masked)) (B, n, V) for prompts `ids` (B, n) whose `masked` (B, n) tokens are hidden."""
    with tokens_masked(contextualizer, text, masked):
        context = text.states(ids)
    return contextualizer(context, padding_of(ids, text.end), text.encoder.get_input_embeddings().weight)


@contextmanager
def tokens_masked(contextualizer: Contextualizer, text: FrozenText, masked: Tensor) -> Iterator[None]:
    """Within the block, the text encoder reads p_mask at the `masked` (B, n) places of prompts, or of their copies."""

    def hide(_: Tensor, embeddings: Tensor) -> Tensor:
        places = masked.repeat(len(embeddings) // len(masked), 1)[..., None]
        return torch.where(places, contextualizer.mask_embedding.to(embeddings.dtype), embeddings)

    with embeddings_replaced(text.encoder, hide):
        yield


def mlm_loss(logits: Tensor, ids: Tensor, masked: Tensor) -> Tensor:
    """Cross-entropy at the masked positions; 0 when nothing is masked.

    Args:
        logits: (B, n, V).
        ids: (B, n), the original tokens.
        masked: (B, n) bool.
    """
    targets = ids.masked_fill(~masked, -100)
    summed = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")
    return summed / masked.sum().clamp(min=1)


@dataclass
class FrozenText:
    """A frozen text encoder with its tokenizer.

    Attributes:
        tokenizer: of transformers.
        encoder: a CLIP text model.
        family: of the backbone: its UNet reads the encoder's last states, SDXL's the penultimate ones.
    """

    tokenizer: Any
    encoder: Any
    family: Family

    @classmethod
    def load(cls, backbone: str, device: str = "cpu") -> FrozenText:
        """The (first) text encoder of a backbone in diffusers' layout.

        Raises:
            BackboneError: the folder or hub repository has none.
        """
        check_backbone_files(backbone)
        tokenizer = load_tokenizer(backbone)
        encoder = load_part(CLIPTextModel, backbone, "text_encoder", dtype=torch.float32)
        return cls(tokenizer, encoder.eval().requires_grad_(False).to(device), read_family(backbone))

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, n), padded to the encoder's length."""
        length = self.tokenizer.model_max_length
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(list(prompts), **options).input_ids

    def states(self, ids: Tensor) -> Tensor:
        """Gamma: the states (B, n, c) of token ids (B, n) that the UNet reads."""
        if self.family == "sd":
            return self.encoder(input_ids=ids).last_hidden_state
        return self.encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]

    @property
    def special(self) -> list[int]:
        """Ids of the special tokens."""
        return list(self.tokenizer.all_special_ids)

    @property
    def end(self) -> int:
        """Id of the end token."""
        return int(self.tokenizer.eos_token_id)


class ContextualizerModule(nn.Module):
    """The contextualizer with its loss; the text encoder is no submodule."""

    def __init__(self, contextualizer: Contextualizer, text: FrozenText) -> None:
        super().__init__()
        self.contextualizer = contextualizer
        self.text = text

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss, and the accuracy at the masked positions; `batch`: ids (B, n), masked (B, n) bool."""
        ids, masked = batch["ids"], batch["masked"]
        logits = mlm_logits(self.contextualizer, self.text, ids, masked)
        right = ((logits.detach().argmax(-1) == ids) & masked).sum() / masked.sum().clamp(min=1)
        return {"loss": mlm_loss(logits, ids, masked), "accuracy": right}


@dataclass(kw_only=True)
class ContextualizerTask:
    """`TrainingTask` of psi and p_mask (Algorithm 1).

    Attributes:
        backbone: Folder or hub id of the frozen text encoder.
        prompts: Without a concept.
        batch_size: Of all workers together.
        mask_rate: Share of the tokens that are masked.
    """

    backbone: str
    prompts: Sequence[str]
    batch_size: int
    layers: int
    mask_rate: float
    seed: int
    device: str = field(default="cpu", compare=False)
    _text: FrozenText | None = field(default=None, init=False, repr=False)
    _ids: Tensor | None = field(default=None, init=False, repr=False)

    def text(self) -> FrozenText:
        """The frozen text encoder; loaded once in a process."""
        if self._text is None:
            self._text = FrozenText.load(self.backbone, self.device)
        return self._text

    def module(self) -> ContextualizerModule:
        """A new contextualizer; psi and p_mask start at random, p_mask at the scale of the token embeddings."""
        text = self.text()
        table: Tensor = text.encoder.get_input_embeddings().weight
        heads: int = text.encoder.config.num_attention_heads
        contextualizer = Contextualizer(table.shape[1], table.shape[0], self.layers, heads)
        with torch.no_grad():
            contextualizer.mask_embedding.normal_(std=table.float().std().item())
        return ContextualizerModule(contextualizer, text)

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """This rank's share of a step's prompts, with their masked positions."""
        if self.batch_size % world:
            raise ModelError(f"a step's {self.batch_size} prompts cannot be divided evenly among {world} workers.")
        if self._ids is None:
            self._ids = self.text().ids(self.prompts)
        share = self.batch_size // world
        slots = range(rank * share, (rank + 1) * share)
        drawn = torch.randint(len(self.prompts), (self.batch_size,), generator=generator_of(self.seed, step))
        ids = self._ids[drawn[rank * share : (rank + 1) * share]]
        generators = [generator_of(self.seed, step, slot) for slot in slots]
        return {"ids": ids, "masked": draw_masked(ids, self.text().special, self.mask_rate, generators)}

    def after_step(self, module: nn.Module, step: int) -> None:
        """Do nothing."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write psi and p_mask with `save_pretrained`."""
        assert isinstance(module, ContextualizerModule)
        module.contextualizer.save_pretrained(folder)


@dataclass(frozen=True)
class MaskedAccuracy:
    """Share of the masked tokens of held-out prompts that are predicted correctly."""

    contextualizer: float
    majority: float  # of a baseline that always predicts the training prompts' most frequent word
    unigram: float  # expected of one that draws each word by its frequency in the training prompts
    positions: int


@torch.no_grad()
def masked_accuracy(
    contextualizer: Contextualizer,
    text: FrozenText,
    train: Sequence[str],
    held_out: Sequence[str],
    rate: float,
    batch_size: int,
) -> MaskedAccuracy:
    """Accuracy at the masked positions of `held_out`, beside two baselines that know the words of `train` only.

    A prompt's masked positions do not depend on `batch_size`, the number of prompts of a pass.
    """
    known = text.ids(train)
    known = known[~torch.isin(known, torch.tensor(text.special))]
    frequencies = known.bincount(minlength=len(text.tokenizer)) / max(len(known), 1)
    right, hidden = 0, [torch.zeros(0, dtype=torch.long)]
    device = contextualizer.mask_embedding.device
    for start in range(0, len(held_out), batch_size):
        ids = text.ids(held_out[start : start + batch_size])
        generators = [generator_of("held out", start + number) for number in range(len(ids))]
        masked = draw_masked(ids, text.special, rate, generators)
        guess = mlm_logits(contextualizer, text, ids.to(device), masked.to(device)).argmax(-1).cpu()
        right += int(((guess == ids) & masked).sum())
        hidden.append(ids[masked])
    words = torch.cat(hidden)
    count = max(len(words), 1)
    return MaskedAccuracy(
        contextualizer=right / count,
        majority=int((words == frequencies.argmax()).sum()) / count,
        unigram=float(frequencies[words].sum()) / count,
        positions=len(words),
    )
