"""What `serve` paints with when `backbone.adapter` names imported released weights."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.backbone import load_backbone
from model.guidance.settings import RELEASE_SETTINGS
from model.painting.painter import RequestPainter
from model.painting.request import PaintedPicture
from pipelines.cli.painting_model import model_of_adapter
from pipelines.config.loading import load_config
from stages.serve.given_adapter import given_model
from tests.support.local_painters import half_mask, noise_picture
from tests.support.released_models import ENCODER_NAMES, write_release_encoders, write_released_adapter
from tests.support.tiny_models import write_sdxl

CAT, HAT = {"picture": noise_picture(1), "word": "cat"}, {"picture": noise_picture(2), "word": "hat"}


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> RequestPainter:
    folder = write_release_encoders(write_sdxl(tmp_path_factory.mktemp("base")))
    adapter = write_released_adapter(tmp_path_factory.mktemp("adapter"), load_backbone(folder).unet)
    views = ["backbone.reference_size=28", f"backbone.image_encoders=[{', '.join(ENCODER_NAMES)}]"]
    config = load_config("sdxl", [f"backbone.weights={folder}", "backbone.dtype=float32", *views])
    model = model_of_adapter(config, str(adapter))
    served = given_model(
        config,
        title="theirs",
        fingerprint=model.fingerprint,
        backbone=model.backbone,
        adapter=str(model.adapter),
        loading=model.loading,
        chosen={"guidance_scale": 4.0},
    )
    load = pickle.loads(pickle.dumps(served.load))  # as Ray sends it to the painters
    loaded: RequestPainter = load()
    return loaded


def pixels(painted: PaintedPicture) -> Any:
    return np.asarray(Image.open(io.BytesIO(painted.picture)), int)


def test_its_settings_are_the_releases_and_the_users(painter: RequestPainter) -> None:
    assert painter.settings == replace(RELEASE_SETTINGS, guidance_scale=4.0)


def test_a_picture_does_not_depend_on_its_batch(painter: RequestPainter) -> None:
    requests: list[dict[str, Any]] = [
        {"subjects": [CAT]},
        {"subjects": [CAT, HAT], "seeds": [3]},
        {"subjects": [{"picture": CAT["picture"], "mask": half_mask()}]},
        {"subjects": []},
        {"subjects": [CAT], "size": (48, 32)},
        {"subjects": [CAT], "negative_prompt": "hat"},
        {"subjects": [CAT], "use_mask": False},
        {"subjects": [HAT], "steps": 2, "guidance_scale": 2.0},
    ]
    prepared = [painter.prepare("a cat in a hat", **{"steps": 4, **request}).pictures[0] for request in requests]
    together, alone = painter.paint(prepared), [painter.paint([picture])[0] for picture in prepared]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
        assert (one.mask is None) == (other.mask is None)
    assert len({pixels(one).tobytes() for one in alone}) == len(alone)


def test_a_reference_that_comes_again_is_not_encoded_again(painter: RequestPainter) -> None:
    painter.cache_encodings(10**9)
    request = painter.prepare("a cat in a hat", [CAT], steps=1).pictures[0]
    first, again = (painter.start(request) for _ in range(2))
    assert (first.encodings_kept, again.encodings_kept) == (0, 1)
