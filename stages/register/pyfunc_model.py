"""The registered model, as MLflow loads it (models-from-code): a subject's picture and a prompt in, a picture out.

MLflow runs this file by itself, with the copy of the package `model` that was registered beside it:

    model = mlflow.pyfunc.load_model("models:/realword-micro@champion")
    model.predict([{"subject": base64_of_a_picture, "word": "mug", "prompt": "a photo of a mug in the snow"}])

The server calls `prepare` and `paint` of the Python object beneath, which take and return encoded pictures.

Artifacts: `backbone` and `adapter` (folders; a backbone from the hub is only named), `inference` (inference.json: how
to load the parts, the default settings, and the checksums of all files), `lineage` (lineage.json: the outputs that the
model comes from; not read here).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from model.checksums import verify_checksums
from model.errors import GenerationError
from model.guidance.settings import InferenceSettings
from model.pictures.decoding import load_picture
from model.pictures.provenance import Provenance, png_with_provenance
from model.pictures.tensors import mask_picture
from model.pipeline import RealCustomPipeline

_MASK_SIDE = 256
# As in `stages.registered_model`, which is not registered with this file.
_VERIFY_CHECKSUMS = "verify_checksums"
_TITLE = "title"


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


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A valid request: its picture is decoded, and its word is in its prompt."""

    subject: Image.Image
    provenance: Provenance


class RealwordModel(PythonModel):
    """RealCustom or RealCustom++ (the adapter says which) behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Verify the checksums of all files, unless the caller has done so, and load the model.

        Raises:
            DamagedArtifactError: A file is missing or damaged.
        """
        self.settings = json.loads(Path(context.artifacts["inference"]).read_text())
        config = context.model_config or {}
        self.title = config.get(_TITLE)
        if config.get(_VERIFY_CHECKSUMS, True):
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

    def predict(self, context: PythonModelContext, model_input: list[PaintRequest]) -> list[Painting]:
        """Paint each request, with pictures in base64.

        Raises:
            ValueError: One sentence on the first invalid request.
        """
        prepared = [
            self.prepare(_decode(request.subject), **request.model_dump(exclude={"subject"}, exclude_none=True))
            for request in model_input
        ]
        return [Painting(picture=_encode(picture), mask=_encode(mask)) for picture, mask in self.paint(prepared)]

    def prepare(self, subject: bytes, word: str, prompt: str, seed: int = 0, **options: Any) -> PreparedRequest:
        """Validate a request, so that `paint` does not fail because of it.

        Args:
            subject: An encoded picture.
            word: A word or phrase of the prompt, which the subject stands for.
            prompt: What to paint.
            seed: Of the initial noise.
            **options: Replace the settings that the evaluation used.

        Raises:
            ValueError: The word is not in the prompt (lists its words), or the subject cannot be read as a picture.
        """
        self.pipeline.backbone.token_positions(prompt, word)
        return PreparedRequest(
            subject=load_picture(subject),
            provenance=Provenance(
                prompt=prompt,
                word=word,
                seed=seed,
                subject_sha256=hashlib.sha256(subject).hexdigest(),
                model=self.title,
                adapter=self.settings["adapter"],
                settings=self._inference_settings(**options),
            ),
        )

    def _inference_settings(self, steps: int | None = None, **options: Any) -> InferenceSettings:
        settings = InferenceSettings(**self.settings["painting"])
        return replace(settings if steps is None else settings.with_steps(steps), **options)

    def paint(self, requests: Sequence[PreparedRequest]) -> list[tuple[bytes, bytes]]:
        """The picture and the mask of each request, as PNG; requests with the same settings are painted together."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[repr(request.provenance.settings)].append(number)
        painted: dict[int, tuple[bytes, bytes]] = {}
        for numbers in groups.values():
            painted |= zip(numbers, self._paint_group([requests[number] for number in numbers]), strict=True)
        return [painted[number] for number in range(len(requests))]

    def _paint_group(self, requests: Sequence[PreparedRequest]) -> list[tuple[bytes, bytes]]:
        made = [request.provenance for request in requests]
        output = self.pipeline(
            [one.prompt for one in made],
            [request.subject for request in requests],
            [one.word for one in made],
            seeds=[one.seed for one in made],
            settings=made[0].settings,
        )
        return [
            (png_with_provenance(image, one), png_with_provenance(mask_picture(masks[-1], _MASK_SIDE), one))
            for image, masks, one in zip(output.images, output.masks, made, strict=True)
        ]


def _decode(subject: str) -> bytes:
    try:
        return base64.b64decode(subject, validate=True)
    except binascii.Error as error:
        raise GenerationError(f"the subject must be a picture file in base64 ({error}).") from error


def _encode(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


mlflow.models.set_model(RealwordModel())
