"""The registered model, as MLflow loads it (models-from-code): a subject's picture and a sentence in, a picture out.

MLflow runs this file by itself, with the copy of the package `model` that was registered beside it:

    model = mlflow.pyfunc.load_model("models:/realword-micro@champion")
    model.predict([{"subject": base64_of_a_picture, "word": "mug", "prompt": "a photo of a mug in the snow"}])

Artifacts: `backbone` and `adapter` (folders; a backbone from the hub is only named), `inference` (inference.json: how
the parts are put together, the default options, and the checksums of all files), `lineage` (lineage.json: where they
come from; nothing here reads it).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from pydantic import BaseModel, ConfigDict, Field

from model.checksums import verify_checksums
from model.pictures.decoding import load_picture, to_png
from model.pictures.tensors import mask_picture
from model.pipeline import GenerationError, RealCustomPipeline

_MASK_SIDE = 256


class PaintRequest(BaseModel):
    """What to paint. Options that are not given are those of the evaluation."""

    model_config = ConfigDict(extra="forbid")

    subject: str  # an encoded picture (PNG, JPEG, WebP, ...), in base64
    word: str
    prompt: str
    seed: int = Field(default=0, ge=0, lt=2**63)
    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None
    mask_scope: float | None = Field(default=None, gt=0, le=1)


class Painting(BaseModel):
    """A painted picture, and where in it the subject was allowed to be (white); both PNG in base64."""

    picture: str
    mask: str


class RealwordModel(PythonModel):
    """RealCustom or RealCustom++, as the adapter says, behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Check the files against their checksums and load the model.

        Raises:
            DamagedArtifactError: A file is missing or damaged.
        """
        self.settings = json.loads(Path(context.artifacts["inference"]).read_text())
        for name, checksums in self.settings["checksums"].items():
            verify_checksums(Path(context.artifacts[name]), checksums)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = RealCustomPipeline.from_pretrained(
            context.artifacts.get("backbone", self.settings["backbone"]),
            context.artifacts["adapter"],
            dtype=getattr(torch, self.settings["dtype"]),
            device=device,
            **self.settings["loading"],
        )

    def check(self, fields: dict[str, Any]) -> None:
        """Find out what is wrong with a request before anything is painted.

        Raises:
            ValueError: The word is not in the prompt (lists its words), the subject is no picture, a field is wrong.
        """
        request = PaintRequest.model_validate(fields)
        self.pipeline.backbone.token_positions(request.prompt, request.word)
        load_picture(_decode(request.subject))

    def predict(self, context: PythonModelContext, model_input: list[PaintRequest]) -> list[Painting]:
        """Paint every request; those with the same options are painted together.

        Raises:
            ValueError: One sentence on the first request that cannot be carried out.
        """
        alike: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(model_input):
            alike[json.dumps(self._options(request), sort_keys=True)].append(number)
        found: dict[int, Painting] = {}
        for numbers in alike.values():
            found |= zip(numbers, self._paint([model_input[number] for number in numbers]), strict=True)
        return [found[number] for number in range(len(model_input))]

    def _options(self, request: PaintRequest) -> dict[str, Any]:
        given = request.model_dump(include={"steps", "guidance_scale", "mask_scope"}, exclude_none=True)
        options: dict[str, Any] = {**self.settings["painting"], **given}
        return options

    def _paint(self, requests: list[PaintRequest]) -> list[Painting]:
        output = self.pipeline(
            [request.prompt for request in requests],
            [load_picture(_decode(request.subject)) for request in requests],
            [request.word for request in requests],
            seeds=[request.seed for request in requests],
            **self._options(requests[0]),
        )
        return [
            Painting(picture=_encode(to_png(image)), mask=_encode(to_png(mask_picture(masks[-1], _MASK_SIDE))))
            for image, masks in zip(output.images, output.masks, strict=True)
        ]


def _decode(subject: str) -> bytes:
    try:
        return base64.b64decode(subject, validate=True)
    except binascii.Error as error:
        raise GenerationError(f"the subject must be a picture file in base64 ({error}).") from error


def _encode(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


mlflow.models.set_model(RealwordModel())
