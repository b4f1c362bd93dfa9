"""How a painted picture was made, kept in the picture's file."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from model.dci.settings import DCISettings
from model.guidance.settings import InferenceSettings

PictureFormat = Literal["png", "webp", "jpeg"]
#: The keyword of the PNG text chunk that holds a `Provenance` as JSON; in other formats it is EXIF's user comment.
KEYWORD = "realword"
_SOFTWARE = "Realword"
_BEST_QUALITY = 100


@dataclass(frozen=True, kw_only=True)
class SubjectProvenance:
    """What a painted picture depends on for one of its subjects.

    Attributes:
        word: The word of the prompt that the subject stands for; None with a mask of the user.
        sha256: Of the subject's picture file.
        scope: Share of the picture that the subject may take; None: the settings'.
        scale: Strength of the subject; None: the settings'.
        mask_sha256: Of the file of the user's mask; None without one.
    """

    word: str | None
    sha256: str
    scope: float | None = None
    scale: float | None = None
    mask_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a painted picture depends on, besides its size.

    Attributes:
        prompt: What was painted.
        seed: Of the initial noise.
        subjects: None of them: painted from text alone.
        model: The registered model and its version, or the shipped one; None for an adapter that is not registered.
        adapter: Fingerprint of the output of the stage `train_adapter`, or of the shipped adapter.
        settings: Of the inference.
        negative_prompt: Of the unconditional rows.
        use_mask: False: the subjects acted on the whole picture.
        visual_guidance_start: Share of the steps before the subjects acted.
        visual_guidance_end: Share of the steps after which they no longer did.
        concepts: Names of the learned concepts in the prompt.
        dci: How their context was generated; None: in one branch.
    """

    prompt: str
    seed: int
    subjects: tuple[SubjectProvenance, ...]
    model: str | None
    adapter: str
    settings: InferenceSettings
    negative_prompt: str | None = None
    use_mask: bool = True
    visual_guidance_start: float = 0.0
    visual_guidance_end: float = 1.0
    concepts: tuple[str, ...] = ()
    dci: DCISettings | None = None

    def as_json(self) -> str:
        """What differs from the defaults; a subject that has only a word is `word` and `subject_sha256`."""
        values = _without_defaults(self)
        values["subjects"] = [_without_defaults(subject) for subject in self.subjects]
        if [set(subject) for subject in values["subjects"]] == [{"word", "sha256"}]:
            (subject,) = values.pop("subjects")
            values |= {"word": subject["word"], "subject_sha256": subject["sha256"]}
        return json.dumps(values)


def _without_defaults(made: Provenance | SubjectProvenance) -> dict[str, Any]:
    values = asdict(made)
    return {field.name: values[field.name] for field in fields(made) if values[field.name] != field.default}


def png_with_provenance(picture: Image.Image, provenance: Provenance) -> bytes:
    """Encode a picture as PNG, with text chunks that say how it was made.

    `Description` and `Software` are keywords of the PNG specification, which picture viewers show.
    """
    text = PngInfo()
    text.add_text("Software", _SOFTWARE)
    text.add_text("Description", provenance.prompt)
    text.add_text(KEYWORD, provenance.as_json())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def encode_with_provenance(
    picture: Image.Image, provenance: Provenance, kind: PictureFormat, quality: int | None = None
) -> bytes:
    """Encode a picture; PNG as `png_with_provenance`, the other formats with EXIF data that say how it was made.

    Args:
        picture: RGB.
        provenance: Of the picture.
        kind: The file format.
        quality: From 0 to 100, of WebP and JPEG; None: 100.
    """
    if kind == "png":
        return png_with_provenance(picture, provenance)
    exif = Image.Exif()
    exif[Base.Software] = _SOFTWARE
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"ASCII\0\0\0" + f"{KEYWORD}: {provenance.as_json()}".encode("ascii")
    buffer = io.BytesIO()
    picture.save(buffer, kind.upper(), quality=_BEST_QUALITY if quality is None else quality, exif=exif)
    return buffer.getvalue()
