"""An adapter on the hub: uploaded with its card, and used by its id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from model.adapters.adapter import AdapterError, VisualAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.usage import AdapterUsage
from model.diffusers_pipelines.attachment import attach_adapter
from model.guidance.settings import InferenceSettings
from model.methods.registry import load_adapter
from model.pipeline import RealCustomPipeline
from tests.support.hub_cache import add_to_hub_cache, use_hub_cache
from tests.support.hub_server import HubServer, hub_server
from tests.support.tiny_diffusers_pipelines import build_pipeline, picture
from tests.support.tiny_models import ENCODERS
from tests.support.tiny_pipelines import build

USAGE = AdapterUsage(
    image_encoders=ENCODERS,
    inference=InferenceSettings(steps=3, mask_steps=2, mask_cross_downscales=[4]),
    base_model="org/base",
)
TOKEN = "hf_test"


@pytest.fixture
def adapter(sd_folder: Path) -> VisualAdapter:
    found = build(sd_folder).adapter
    assert found is not None
    found.usage = USAGE
    return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub with nothing on it, and an empty cache."""
    with hub_server(TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        template = "{endpoint}/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace("{endpoint}", server.endpoint))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def same_weights(one: VisualAdapter, other: VisualAdapter) -> bool:
    own, others = one.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[key], others[key]) for key in own)


def test_upload_and_download(adapter: VisualAdapter, hub: HubServer, sd_folder: Path) -> None:
    url = adapter.push_to_hub("org/adapter", licence="openrail++")
    (first, files), *_ = hub.commits["org/adapter"]
    assert url.endswith(f"/org/adapter/commit/{first}")
    assert {"README.md", "config.json", "diffusion_pytorch_model.safetensors", "usage.json"} <= files.keys()
    card = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (card["base_model"], card["license"]) == ("org/base", "openrail++")

    changed = type(adapter).from_pretrained("org/adapter")
    assert (changed.usage, same_weights(changed, adapter)) == (USAGE, True)
    torch.nn.init.zeros_(next(changed.parameters()))
    changed.push_to_hub("org/adapter")
    assert same_weights(load_adapter("org/adapter"), changed)
    earlier = load_adapter(f"org/adapter@{first}")
    assert (earlier.usage, same_weights(earlier, adapter)) == (USAGE, True)

    pipe = attach_adapter(build_pipeline("StableDiffusionPipeline", sd_folder), f"org/adapter@{first}")
    options = {"num_inference_steps": 3, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    assert np.isfinite(pipe("a cat", subjects=picture(), words="cat", **options).images).all()


def test_an_upload_without_rights(adapter: VisualAdapter, hub: HubServer) -> None:
    with pytest.raises(HfHubHTTPError, match="401"):
        adapter.push_to_hub("org/adapter", token="hf_other")
    assert hub.commits == {}


@pytest.mark.parametrize("encoder", ["/data/siglip", "./siglip", "../siglip", "~/siglip", "models/a/siglip"])
def test_encoders_of_this_machine_are_not_uploaded(encoder: str, adapter: VisualAdapter, hub: HubServer) -> None:
    adapter.usage = replace(USAGE, image_encoders={**ENCODERS, "image_encoders": [encoder]})
    with pytest.raises(AdapterError, match=f"{encoder} is a folder of this machine.*hub id"):
        adapter.push_to_hub("org/adapter")
    assert hub.commits == {}


def test_a_save_does_not_upload(adapter: VisualAdapter, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="use push_to_hub"):
        adapter.save_pretrained(tmp_path, push_to_hub=True)


def test_everything_by_hub_ids_without_a_network(
    adapter: VisualAdapter, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = use_hub_cache(monkeypatch, tmp_path / "cache")
    encoders = {**ENCODERS, "image_encoders": ["org/clip@v1"]}
    adapter.usage = replace(USAGE, image_encoders=encoders)
    adapter.save_pretrained(tmp_path / "adapter")
    add_to_hub_cache(cache, "org/base", sd_folder)
    add_to_hub_cache(cache, "org/base", sd_folder, "fp32")
    add_to_hub_cache(cache, "org/clip", sd_folder / "clip", "v1")
    add_to_hub_cache(cache, "org/adapter", tmp_path / "adapter")
    for base in ("org/base", "org/base@fp32"):
        own = RealCustomPipeline.from_pretrained(base, "org/adapter", **encoders)
        assert isinstance(own.adapter, RealCustomPlusAdapter)
        assert own("a cat", picture(), "cat", settings=USAGE.inference).images
    pipe = attach_adapter(build_pipeline("StableDiffusionPipeline", sd_folder), "org/adapter")
    assert pipe("a cat", subjects=picture(), words="cat", num_inference_steps=3).images
