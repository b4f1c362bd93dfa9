"""A plain statement of how RealCustom++'s authors use their released weights, one pass and one picture at a time.

It shares nothing with the project but the models' files: diffusers' UNet with attention written out, transformers'
encoders, the released state dict by its own names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, Dinov2WithRegistersModel, SiglipVisionModel

from tests.support.released_models import ENCODER_NAMES, IMAGE_WIDTH, IMAGENET, PROJECTION, REFERENCE_SIZE

Pair = tuple[float, float]


# Image features ----------------------------------------------------------------------------------------------------


def stretched(picture: Image.Image, side: int = 2 * REFERENCE_SIZE) -> Tensor:
    """(1, 3, side, side) in [0, 1]."""
    pixels = torch.tensor(np.asarray(picture.convert("RGB"))).permute(2, 0, 1)[None] / 255
    resized = F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)
    return torch.floor(resized * 255) / 255


class Encoders:
    """Outputs of blocks, caught as they leave them."""

    def __init__(self, folder: Path) -> None:
        siglip = SiglipVisionModel.from_pretrained(folder / ENCODER_NAMES[0])
        dino = Dinov2WithRegistersModel.from_pretrained(folder / ENCODER_NAMES[1])
        half = torch.full((3, 1, 1), 0.5)
        imagenet = [torch.tensor(IMAGENET[name]).view(3, 1, 1) for name in ("image_mean", "image_std")]
        self.siglip = siglip, siglip.encoder.layers, half, half, 0
        self.dino = dino, dino.encoder.layer, *imagenet, 5  # a class token and four registers

    def block(self, view: Tensor, siglip: int, dino: int) -> Tensor:
        """Outputs of one block of each, (1, n, 128)."""
        outputs = []
        for (model, blocks, mean, std, others), number in ((self.siglip, siglip), (self.dino, dino)):
            caught: list[Tensor] = []
            hook = blocks[number].register_forward_hook(lambda *given, kept=caught: kept.append(given[2]))
            interpolate = {} if not others else {"interpolate_pos_encoding": True}
            if "interpolate_pos_encoding" not in type(model).forward.__code__.co_varnames:
                interpolate = {}
            model(pixel_values=(view - mean) / std, **interpolate)
            hook.remove()
            (output,) = caught
            output = output[0] if isinstance(output, tuple) else output
            outputs.append(output[:, others:])
        return torch.cat(outputs, dim=-1)

    def features(self, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Deep (1, n, 128), shallow (1, 3 n, 128), high (1, 4 n, 128)."""
        half = [side // 2 for side in square.shape[-2:]]
        low = F.interpolate(square, half, mode="bilinear", align_corners=True)
        low = (low * 255).byte().float() / 255
        views = [square[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        shallow = [self.block(low, *blocks) for blocks in ((7, 4), (13, 10), (19, 16))]
        return self.block(low, 25, 22), torch.cat(shallow, 1), torch.cat([self.block(one, 25, 22) for one in views], 1)


# The projector -----------------------------------------------------------------------------------------------------


def branch(state: dict[str, Tensor], number: str, deep: Tensor, context: Tensor) -> Tensor:
    """MinAttention and projector, from the deep features to a context."""

    def part(name: str) -> Tensor:
        return state[f"{PROJECTION}.{name}"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], part(f"{name}.weight"), part(f"{name}.bias"))

    attention, mlp = f"min_attention{number}", f"projector{number}"
    deep, context = norm(f"{attention}.norm1", deep), norm(f"{attention}.norm2", context)
    query, key, value = (
        (x @ part(f"{attention}.to_{name}.weight").T).chunk(IMAGE_WIDTH // 64, dim=-1)
        for name, x in (("q", deep), ("k", context), ("v", context))
    )
    heads = [(q @ k.mT / 8).softmax(-1) @ v for q, k, v in zip(query, key, value, strict=True)]
    x = torch.cat(heads, -1)
    for index, activation in ((0, F.gelu), (2, F.gelu), (4, lambda y: y)):
        x = activation(x @ part(f"{mlp}.{index}.weight").T + part(f"{mlp}.{index}.bias"))
    return norm(f"{mlp}.5", x)


def base(state: dict[str, Tensor], deep: Tensor) -> Tensor:
    weight, bias = (state[f"{PROJECTION}.projector_base.{name}"] for name in ("weight", "bias"))
    return deep @ weight.T + bias


def projected(state: dict[str, Tensor], deep: Tensor, shallow: Tensor, high: Tensor) -> Tensor:
    """Image tokens of both released forms, as the released forward makes them."""
    if any("projector2" in name for name in state):
        return torch.cat([base(state, deep), branch(state, "2", deep, shallow)], dim=1)
    return base(state, deep) + branch(state, "", deep, high)


# Text --------------------------------------------------------------------------------------------------------------


def text_conditions(folder: Path, text: str, width: int, height: int) -> tuple[Tensor, dict[str, Tensor]]:
    """States (1, n_t, c_t) and what SDXL's UNet takes beside them."""
    states, pooled = [], None
    for suffix in ("", "_2"):
        tokenizer = AutoTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
        ids = tokenizer(text, truncation=True, padding="max_length", return_tensors="pt").input_ids
        output = CLIPTextModel.from_pretrained(folder / f"text_encoder{suffix}")(ids, output_hidden_states=True)
        states.append(output.hidden_states[-2])
        pooled = output.pooler_output
    assert pooled is not None
    time_ids = torch.tensor([[width, height, 0, 0, width, height]], dtype=torch.float32)
    return torch.cat(states, dim=-1), {"text_embeds": pooled, "time_ids": time_ids}


# The UNet with attention written out -------------------------------------------------------------------------------


@dataclass
class NaiveAttention:
    """The attention of one layer, with the visual one beside the text's; keeps its probabilities."""

    layer: str
    shared: Any

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        queries = attn.to_q(hidden_states)
        out, probabilities = self._attend(attn.heads, queries, attn.to_k(context), attn.to_v(context))
        if encoder_hidden_states is not None:
            self.shared.maps[self.layer] = probabilities
        if encoder_hidden_states is not None and self.shared.tokens is not None:
            weights = [self.shared.state[f"{self.layer}.to_{name}_vision.weight"] for name in "kv"]
            key, value = (self.shared.tokens @ weight.T for weight in weights)
            visual = self._attend(attn.heads, queries, key, value)[0]
            out = out + visual * self._mask(queries.shape[1])
        return attn.to_out[0](out)

    def _attend(self, heads: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        parts = [
            ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1), v)
            for q, k, v in zip(*(x.chunk(heads, dim=-1) for x in (query, key, value)), strict=True)
        ]
        return torch.cat([p @ v for p, v in parts], -1), torch.stack([p for p, _ in parts]).mean(0)

    def _mask(self, positions: int) -> Tensor | float:
        mask = self.shared.mask  # (G, G')
        if mask is None:
            return 1.0
        grid = next(
            (math.ceil(mask.shape[0] / by), math.ceil(mask.shape[1] / by))
            for by in (1, 2, 4, 8)
            if math.ceil(mask.shape[0] / by) * math.ceil(mask.shape[1] / by) == positions
        )
        return F.interpolate(mask[None, None], size=grid, mode="bilinear").view(1, -1, 1)


@dataclass
class NaiveUNet:
    """Passes of one picture."""

    unet: UNet2DConditionModel
    state: dict[str, Tensor]
    tokens: Tensor | None = None
    mask: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = self.unet.attn_processors
        self.unet.set_attn_processor({name: NaiveAttention(name.removesuffix(".processor"), self) for name in names})

    def predict(
        self, latents: Tensor, timestep: int, text: tuple[Tensor, dict[str, Tensor]], tokens: Tensor | None
    ) -> Tensor:
        self.tokens = tokens
        hidden, added = text
        return self.unet(latents, timestep, hidden, added_cond_kwargs=added).sample


def mask_of(maps: dict[str, Tensor], words: list[int], grid: tuple[int, int], scope: float, mode: str) -> Tensor:
    """The mask (G, G') from the cross-attention of all layers; the largest grid is the mask's."""
    at_grid = []
    for probabilities in maps.values():
        of_word = probabilities[0, :, words].sum(-1)
        downscale = round(math.sqrt(grid[0] * grid[1] / len(of_word)))
        own = math.ceil(grid[0] / downscale), math.ceil(grid[1] / downscale)
        at_grid.append(F.interpolate(of_word.view(1, 1, *own), size=grid, mode="bilinear")[0, 0])

    def from_0_to_1(one: Tensor) -> Tensor:
        return (one - one.min()) / (one.max() - one.min() + 1e-6)

    if mode == "min_max_per_channel":
        mean = from_0_to_1(torch.stack([from_0_to_1(one) for one in at_grid]).mean(0))
    else:
        mean = torch.stack(at_grid).mean(0)
        mean = mean / mean.max()
    order = mean.flatten().argsort(descending=True, stable=True)
    mask = mean.flatten().clone()
    mask[order[int(scope * mask.numel()) :]] = 0
    return mask.view(grid)


# Sampling ----------------------------------------------------------------------------------------------------------


def noise_schedule() -> list[Pair]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) of the 1000 timesteps."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bars = np.cumprod(1 - betas)
    return [(math.sqrt(one), math.sqrt(1 - one)) for one in alpha_bars]


def trailing(steps: int) -> list[int]:
    return [round(999 - number * 1000 / steps) for number in range(steps)]


def dpm(predict: Callable[[Tensor, int], Tensor], latents: Tensor, steps: int) -> Tensor:
    """DPM-Solver++ (2S), midpoint, of orders 1, 1, 2, 1, 2, ... (Lu et al. 2022, Algorithm 1); the last x_0."""
    schedule, timesteps = noise_schedule(), trailing(steps)
    start, before, clean = latents, latents, latents
    begun = 0
    for number, timestep in enumerate(timesteps):
        alpha, sigma = schedule[timestep]
        clean = (latents - sigma * predict(latents, timestep)) / alpha
        if number == steps - 1:
            return clean
        order = 1 if number == 0 else (number - 1) % 2 + 1
        to = schedule[timesteps[number + 1]]
        if order == 1:
            start, before, begun = latents, clean, timestep
            latents = _exponential(start, schedule[begun], to, clean)
        else:
            half, whole, end = (_log_snr(schedule[begun]), _log_snr(schedule[timestep]), _log_snr(to))
            ratio = (whole - half) / (end - half)
            middle = (1 - 1 / (2 * ratio)) * before + 1 / (2 * ratio) * clean
            latents = _exponential(start, schedule[begun], to, middle)
    return clean


def _exponential(start: Tensor, at: Pair, to: Pair, clean: Tensor) -> Tensor:
    """sigma_t / sigma_s x_s - alpha_t (e^-h - 1) x_0."""
    step = _log_snr(to) - _log_snr(at)
    return to[1] / at[1] * start - to[0] * (math.exp(-step) - 1) * clean


def _log_snr(at: Pair) -> float:
    return math.log(at[0] / at[1])


def ddim(predict: Callable[[Tensor, int], Tensor], latents: Tensor, steps: int) -> Tensor:
    """DDIM without noise; the last x_0."""
    schedule, timesteps = noise_schedule(), trailing(steps)
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha, sigma = schedule[timestep]
        noise = predict(latents, timestep)
        latents = (latents - sigma * noise) / alpha
        if following is not None:
            latents = schedule[following][0] * latents + schedule[following][1] * noise
    return latents


# All of it ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def final_latents(
    folder: Path,
    encoders: Encoders,
    state: dict[str, Tensor],
    prompt: str,
    words: list[int],
    picture: Image.Image,
    noise: Tensor,
    negative: str,
    *,
    steps: int = 25,
    guidance: float = 3.5,
    scope: float = 0.25,
    mask_steps: int = 12,
    mode: str = "max_norm",
    sampler: Callable[[Callable[[Tensor, int], Tensor], Tensor, int], Tensor] = dpm,
    masks: list[Tensor] | None = None,
    use_mask: bool = True,
) -> Tensor:
    """What is decoded for one picture.

    `noise` is (1, 4, h, w), of a VAE that halves; attention's largest grid is h/2 x w/2, as in SDXL.
    """
    height, width = noise.shape[2:]
    unet = NaiveUNet(UNet2DConditionModel.from_pretrained(folder / "unet"), state)
    square = stretched(picture)
    tokens, black = (projected(state, *encoders.features(one)) for one in (square, torch.zeros_like(square)))
    text = text_conditions(folder, prompt, 2 * width, 2 * height)
    other = text_conditions(folder, negative, 2 * width, 2 * height)
    kept = [] if masks is None else masks

    def predict(latents: Tensor, timestep: int) -> Tensor:
        if use_mask and len(kept) < mask_steps:
            unet.predict(latents, timestep, text, None)
            kept.append(mask_of(unet.maps, words, (math.ceil(height / 2), math.ceil(width / 2)), scope, mode))
        unet.mask = kept[-1] if use_mask else None
        conditional = unet.predict(latents, timestep, text, tokens)
        unconditional = unet.predict(latents, timestep, other, black)
        return unconditional + guidance * (conditional - unconditional)

    return sampler(predict, noise, steps)
