"""The adapter that ships beside the base weights: trained, ready to paint before any run.

config.json, diffusion_pytorch_model.safetensors    diffusers' layout in fp16
usage.json                                          how `attach_adapter` uses it
fingerprint.json                                    as that of the weights, with two more entries:
                                                    base (digest of the base weights that it was trained on) and
                                                    loading (arguments of `RealCustomPipeline.from_pretrained`)
README.md                                           the model card

`python -m pipelines.ship_adapter RUN_FOLDER` replaces it with the adapter of a run.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.adapters.usage import AdapterUsage
from model.checksums import file_checksum
from model.guidance.settings import InferenceSettings
from model.methods.registry import load_adapter
from model.micro_sd.fingerprint import (
    CARD,
    FINGERPRINT,
    OutdatedWeightsError,
    WeightsError,
    read_fingerprint,
    verify_fingerprint,
    write_fingerprint,
)
from model.micro_sd.weights import WEIGHTS_FOLDER, WEIGHTS_FORMAT, clean_config, verify_weights
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import ClipScorer

ADAPTER_FOLDER = Path(__file__).parent / "adapter"  # what ships with the code
ADAPTER_FORMAT = "micro-stable-diffusion-adapter/1"
_NOT_PAINTED_WITH = "judge/"  # the part of the base that an adapter does not depend on


@dataclass(frozen=True, kw_only=True)
class ShippedModel:
    """The shipped base and adapter; the files have been verified.

    Attributes:
        base: The folder of the base weights.
        adapter: The folder of the adapter.
        fingerprint: Of the adapter, 12 hexadecimal digits.
        loading: How the image encoders are loaded, as when the adapter was trained.
    """

    base: Path
    adapter: Path
    fingerprint: str
    loading: Mapping[str, Any]
    title: str = "realword-micro as shipped"

    def load_clip(self) -> ClipScorer:
        """The base's CLIP."""
        return ClipScorer.of_backbone(self.base, "clip")

    def load(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> RealCustomPipeline:
        """The pipeline of both."""
        return RealCustomPipeline.from_pretrained(self.base, self.adapter, dtype=dtype, device=device, **self.loading)


def find_shipped_model(base: Path = WEIGHTS_FOLDER, adapter: Path = ADAPTER_FOLDER) -> ShippedModel:
    """Verify the base and the adapter that ship with the code.

    Raises:
        WeightsError: A file is missing or damaged, or the adapter was trained on another base; says what to do.
    """
    try:
        verify_weights(base)
        fingerprint = verify_fingerprint(adapter, ADAPTER_FORMAT)
        if fingerprint.get("base") != base_digest(base):
            raise OutdatedWeightsError(f"{adapter} was trained on other base weights than those in {base}")
    except WeightsError as error:
        raise type(error)(
            f"The model that ships with Realword cannot be used: {error}; restore {base.parent} from the repository."
        ) from error
    digest = file_checksum(adapter / FINGERPRINT)[:12]
    return ShippedModel(base=base, adapter=adapter, fingerprint=digest, loading=fingerprint["loading"])


def save_shipped_adapter(folder: Path, *, adapter: Path, base: Path, loading: Mapping[str, Any], training: str) -> None:
    """Write an adapter in half precision with a card and a fingerprint, the fingerprint last.

    Args:
        folder: Where to; files of the same names are replaced.
        adapter: The folder of an adapter that was trained on `base`.
        base: A folder of base weights.
        loading: How the image encoders were loaded.
        training: A section of the card.
    """
    (folder / FINGERPRINT).unlink(missing_ok=True)
    shipped = load_adapter(adapter, torch_dtype=torch.float16)
    shipped.usage = AdapterUsage(image_encoders=dict(loading), inference=InferenceSettings(), base_model=None)
    shipped.save_pretrained(folder, licence="apache-2.0")
    clean_config(folder / "config.json")
    card = folder / CARD
    card.write_text(f"{card.read_text().rstrip()}\n\n{training.rstrip()}\n")
    recipe = read_fingerprint(base, WEIGHTS_FORMAT)["recipe"]
    write_fingerprint(folder, ADAPTER_FORMAT, recipe, base=base_digest(base), loading=dict(loading))


def base_digest(base: Path) -> str:
    """SHA-256 of the recorded checksums of all files of base weights that an adapter depends on.

    Raises:
        WeightsError: The folder has no fingerprint, or a damaged one.
    """
    files = read_fingerprint(base, WEIGHTS_FORMAT)["files"]
    used = {name: checksum for name, checksum in files.items() if not name.startswith(_NOT_PAINTED_WITH)}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
