"""How a painted picture was made, kept in the picture's file."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model.guidance.settings import InferenceSettings

#: The keyword of the PNG text chunk that holds a `Provenance` as JSON.
KEYWORD = "realword"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a painted picture depends on.

    Attributes:
        prompt: What was painted.
        word: The word of the prompt that the subject stands for.
        seed: Of the initial noise.
        subject_sha256: Of the subject's picture file.
        model: The registered model and its version, or the shipped one; None for an adapter that is not registered.
        adapter: Fingerprint of the output of the stage `train_adapter`, or of the shipped adapter.
        settings: Of the inference.
    """

    prompt: str
    word: str
    seed: int
    subject_sha256: str
    model: str | None
    adapter: str
    settings: InferenceSettings


def png_with_provenance(picture: Image.Image, provenance: Provenance) -> bytes:
    """Encode a picture as PNG, with text chunks that say how it was made.

    `Description` and `Software` are keywords of the PNG specification, which picture viewers show.
    """
    text = PngInfo()
    text.add_text("Software", "Realword")
    text.add_text("Description", provenance.prompt)
    text.add_text(KEYWORD, json.dumps(asdict(provenance)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()
