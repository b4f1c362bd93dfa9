"""The registered model, as MLflow loads it (models-from-code): a subject's picture and a prompt in, a picture out.

MLflow runs this file by itself, with the copy of the package `model` that was registered beside it:

    model = mlflow.pyfunc.load_model("models:/realword-micro@champion")
    model.predict([{"subject": base64_of_a_picture, "word": "mug", "prompt": "a photo of a mug in the snow"}])

The server uses the painter of the Python object beneath, which takes and returns encoded pictures.

Artifacts: `adapter` (a folder), `inference` (inference.json: how to load the parts, the default settings, and the
checksums of all files), `lineage` (lineage.json: the outputs that the model comes from; not read here). Backbone and
image encoders are no artifacts of a version: all versions share them (`model.registered_parts`).
"""

from __future__ import annotations

import base64
import binascii
import json
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from pydantic import BaseModel, ConfigDict, Field

from model.checksums import verify_checksums
from model.devices import fastest_device
from model.errors import GenerationError
from model.guidance.settings import InferenceSettings
from model.painting.painter import RequestPainter
from model.painting.request import PreparedRequest
from model.pipeline import RealCustomPipeline
from model.registered_parts import part_location
from model.scoring.metrics import ClipScorer

# As in `stages.registered_model`, which is not registered with this file.
_VERIFY_CHECKSUMS = "verify_checksums"
_TITLE = "title"
_PARTS_HERE = "parts_here"
_PARTS = "parts"


class PaintRequest(BaseModel):
    """What to paint. An option that is not given has the value that the evaluation used."""

    model_config = ConfigDict(extra="forbid")

    subject: str  # an encoded picture (PNG, JPEG, WebP, ...), in base64
    word: str
    prompt: str
    seed: int = Field(default=0, ge=0, lt=2**63)
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance_scale: float | None = Field(default=None, ge=0)
    mask_scope: float | None = Field(default=None, gt=0, le=1)


class Painting(BaseModel):
    """A painted picture, and where in it the subject was allowed to be (white); both PNG in base64."""

    picture: str
    mask: str


class RealwordModel(PythonModel):
    """RealCustom or RealCustom++ (the adapter says which) behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Verify the checksums of all files, unless the caller has done so, and load the model.

        Raises:
            DamagedArtifactError: A file is missing or damaged.
            MissingPartError: A shared part cannot be had.
        """
        settings = json.loads(Path(context.artifacts["inference"]).read_text())
        config = context.model_config or {}
        if config.get(_VERIFY_CHECKSUMS, True):
            verify_checksums(Path(context.artifacts["adapter"]), settings["checksums"]["adapter"])
        parts = _parts(settings, Path(context.artifacts["inference"]), config)
        backbone, loading = parts["backbone"], settings["loading"]
        encoders = [parts.get(f"image_encoder_{number}", name) for number, name in enumerate(loading["image_encoders"])]
        pipeline = RealCustomPipeline.from_pretrained(
            backbone,
            context.artifacts["adapter"],
            dtype=getattr(torch, settings["dtype"]),
            device=fastest_device(),
            **{**loading, "image_encoders": encoders},
        )
        self.painter = RequestPainter(
            pipeline=pipeline,
            settings=InferenceSettings(**settings["painting"]),
            title=config.get(_TITLE),
            adapter=settings["adapter"],
            clip=partial(ClipScorer.of_backbone, backbone, parts.get("clip", settings["clip"])),
        )

    def predict(self, context: PythonModelContext, model_input: list[PaintRequest]) -> list[Painting]:
        """Paint each request, with pictures in base64.

        Raises:
            ValueError: One sentence on the first invalid request.
        """
        prepared = [self._prepare(request) for request in model_input]
        return [
            Painting(picture=_encode(painted.picture), mask=_encode(painted.mask or b""))
            for painted in self.painter.paint([picture for request in prepared for picture in request.pictures])
        ]

    def _prepare(self, request: PaintRequest) -> PreparedRequest:
        options = request.model_dump(exclude={"subject", "word", "prompt", "seed"}, exclude_none=True)
        subject = {"picture": _decode(request.subject), "word": request.word}
        return self.painter.prepare(request.prompt, [subject], [request.seed], **options)


def _parts(settings: dict[str, Any], inference: Path, config: dict[str, Any]) -> dict[str, str]:
    """The location of each shared part, with verified files unless the caller has done that."""
    located: dict[str, str] = {}
    here = config.get(_PARTS_HERE) or {}
    beside = inference.parent.joinpath(*[".."] * 4, _PARTS)  # of parts/../models/m-.../artifacts/artifacts/
    for name, part in settings["parts"].items():
        if name in here:
            located[name] = str(Path(here[name]) / part["file"])
        else:
            located[name] = part_location(name, part, beside, settings["parts_place"], _download)
        if config.get(_VERIFY_CHECKSUMS, True) and "checksums" in part:
            path = Path(located[name])
            verify_checksums(path.parent if part["file"] else path, part["checksums"])
    return located


def _download(uri: str, folder: str) -> str:
    return str(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))


def _decode(subject: str) -> bytes:
    try:
        return base64.b64decode(subject, validate=True)
    except binascii.Error as error:
        raise GenerationError(f"the subject must be a picture file in base64 ({error}).") from error


def _encode(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


mlflow.models.set_model(RealwordModel())
