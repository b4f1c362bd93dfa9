"""How large the models of a training are, from the files that are there: nothing is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint_files import tensor_shapes
from model.errors import ModelError
from model.pretrained import WEIGHTS_FILE, weights_variants
from pipelines.doctor.hub import cached_snapshot
from pipelines.doctor.models import is_part
from stages.config import Config

#: SigLIP's and CLIP's repositories hold a text tower too, which an image encoder does not use.
_VISION = "vision_model."
_FULL, _HALF = 4, 2  # bytes of a number
GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class TrainingSizes:
    """The parameters of what the stage `train_adapter` holds, in numbers.

    Attributes:
        unet: Of the UNet.
        vae: Of the VAE.
        text: Of the text encoders.
        encoders: Of the image encoders.
        adapter: What is trained.
    """

    unet: int
    vae: int
    text: int
    encoders: int
    adapter: int

    def bytes_while_loading(self, *, is_half: bool) -> int:
        """Bytes of the machine's memory that a worker needs at once before its models are on a GPU.

        UNet, VAE and text encoders are moved there together, the halved UNet with the others as they are loaded.
        """
        backbone = (_HALF if is_half else _FULL) * self.unet + _FULL * (self.vae + self.text)
        return max(backbone, _FULL * max(self.unet, self.encoders, self.adapter))

    def bytes_of_worker(self, *, is_half: bool, zero_stage: int, workers: int) -> int:
        """Bytes that a worker holds in a step besides the activations.

        The frozen models but the VAE are in half precision if the training is; the adapter has fp32 weights,
        gradients, and two moments of AdamW, which ZeRO's stages share out among the workers: 1 the moments, 2 the
        gradients, 3 the weights.
        """
        frozen = (_HALF if is_half else _FULL) * (self.unet + self.text + self.encoders) + _FULL * self.vae
        share = [workers if zero_stage >= stage else 1 for stage in (3, 2, 1)]
        return frozen + sum(_FULL * count * self.adapter // part for count, part in zip((1, 1, 2), share, strict=True))


def gigabytes(count: float) -> str:
    """Bytes, as a user reads them."""
    return f"{count / GIGABYTE:,.1f} GB"


def training_sizes(config: Config) -> TrainingSizes | None:
    """The sizes for a configuration; None: not all models are on this machine, or one is damaged."""
    try:
        return _training_sizes(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError):  # JSON of any form
        return None


def _training_sizes(config: Config) -> TrainingSizes | None:
    weights = config.backbone.weights
    backbone = None if weights is None else local_folder(weights)
    encoders = [_encoder_folder(name, backbone) for name in config.backbone.image_encoders]
    folders = [folder for folder in encoders if folder is not None]
    if backbone is None or not (backbone / "unet" / "config.json").is_file() or len(folders) < len(encoders):
        return None
    unet = json.loads((backbone / "unet" / "config.json").read_text())
    return TrainingSizes(
        unet=parameters(backbone / "unet"),
        vae=parameters(backbone / "vae"),
        text=parameters(backbone / "text_encoder") + parameters(backbone / "text_encoder_2"),
        encoders=sum(map(parameters, folders)),
        adapter=_adapter_parameters(config, unet, _image_width(folders)),
    )


def local_folder(location: str) -> Path | None:
    """The folder of a model on this machine, also in the hub's cache; None: there is none."""
    folder = Path(location).expanduser()
    return folder if folder.is_dir() else cached_snapshot(location)


def parameters(folder: Path) -> int:
    """The numbers in the weights of a folder, by the heads of its files; of an encoder's those of its vision tower."""
    if not folder.is_dir():
        return 0
    variant = weights_variants(folder)[0]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in folder.iterdir():
        match = WEIGHTS_FILE.fullmatch(file.name)
        if match and match["variant"] == variant:
            shapes |= tensor_shapes(file) or {}
    vision = {name: shape for name, shape in shapes.items() if name.startswith(_VISION)}
    return sum(math.prod(shape) for shape in (vision or shapes).values())


def _image_width(folders: Iterable[Path]) -> int:
    """The width of the features of all image encoders together."""
    configs = (json.loads((folder / "config.json").read_text()) for folder in folders)
    return sum(config.get("vision_config", config)["hidden_size"] for config in configs)


def _encoder_folder(name: str, backbone: Path | None) -> Path | None:
    if is_part(name):
        return None if backbone is None else backbone / name
    return local_folder(name)


def _adapter_parameters(config: Config, unet_config: Mapping[str, Any], image_width: int) -> int:
    """The numbers of an adapter, which is built without memory for them."""
    import torch
    from diffusers import UNet2DConditionModel

    from model.methods.registry import METHODS

    settings, method = config.train_adapter, METHODS[config.train_adapter.method]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(unet_config))
        options = {name: getattr(settings, name) for name in method.adapter_options}
        adapter = method.new_adapter(unet, image_width, **options)
    return sum(weight.numel() for weight in adapter.parameters())
