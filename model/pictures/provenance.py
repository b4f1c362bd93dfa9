"""How a painted picture was made, kept in the picture's file.

Files also say in the standard way that a model has made the picture: IPTC's digital source type, which search engines
and picture programs read, in an XMP packet.
"""

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
#: See "IPTC Photo Metadata Standard", Digital Source Type, and "XMP Specification Part 3" for the PNG keyword.
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP_KEYWORD = "XML:com.adobe.xmp"
_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 Iptc4xmpExt:DigitalSourceType="{_SOURCE_TYPE}" xmp:CreatorTool="{_SOFTWARE}"/>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
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


def png_with_provenance(picture: Image.Image, provenance: Provenance, *, mark_generated: bool = True) -> bytes:
    """Encode a picture as PNG, with text chunks that say how it was made.

    `Description` and `Software` are keywords of the PNG specification, which picture viewers show.

    Args:
        picture: To encode.
        provenance: Of the picture.
        mark_generated: Add IPTC's digital source type.
    """
    text = PngInfo()
    if mark_generated:
        text.add_itxt(_XMP_KEYWORD, _XMP)
    text.add_text("Software", _SOFTWARE)
    text.add_text("Description", provenance.prompt)
    text.add_text(KEYWORD, provenance.as_json())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def encode_with_provenance(
    picture: Image.Image,
    provenance: Provenance,
    kind: PictureFormat,
    quality: int | None = None,
    *,
    mark_generated: bool = True,
) -> bytes:
    """Encode a picture; PNG as `png_with_provenance`, the other formats with EXIF data that say how it was made.

    Args:
        picture: RGB.
        provenance: Of the picture.
        kind: The file format.
        quality: From 0 to 100, of WebP and JPEG; None: 100.
        mark_generated: Add IPTC's digital source type.
    """
    if kind == "png":
        return png_with_provenance(picture, provenance, mark_generated=mark_generated)
    exif = Image.Exif()
    exif[Base.Software] = _SOFTWARE
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"ASCII\0\0\0" + f"{KEYWORD}: {provenance.as_json()}".encode("ascii")
    buffer = io.BytesIO()
    options: dict[str, Any] = {"xmp": _XMP.encode()} if mark_generated else {}
    picture.save(buffer, kind.upper(), quality=_BEST_QUALITY if quality is None else quality, exif=exif, **options)
    return buffer.getvalue()
