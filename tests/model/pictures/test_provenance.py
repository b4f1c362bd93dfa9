"""What the files of painted pictures say about themselves, read back."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from model.guidance.settings import InferenceSettings
from model.pictures.provenance import (
    PictureFormat,
    Provenance,
    SubjectProvenance,
    encode_with_provenance,
    png_with_provenance,
)

MADE = Provenance(
    prompt="a <mug> & a 雪 \u2028",
    seed=7,
    subjects=(SubjectProvenance(word="mug", sha256="abc"),),
    model=None,
    adapter="abc",
    settings=InferenceSettings(),
)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(256, size=(8, 12, 3), dtype=np.uint8))
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"


def packet(data: bytes) -> ElementTree.Element | None:
    """The XMP packet, as Pillow finds it in each format."""
    info = Image.open(io.BytesIO(data)).info
    found = info.get("xmp", info.get("XML:com.adobe.xmp"))
    return None if found is None else ElementTree.fromstring(found)


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_pictures_are_marked_as_generated(kind: PictureFormat) -> None:
    root = packet(encode_with_provenance(PICTURE, MADE, kind))
    assert root is not None
    (description,) = root.iter(RDF)
    assert description.get(SOURCE_TYPE) == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert packet(encode_with_provenance(PICTURE, MADE, kind, mark_generated=False)) is None


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_the_mark_changes_no_pixel_and_no_other_text(kind: PictureFormat) -> None:
    marked, plain = (
        Image.open(io.BytesIO(encode_with_provenance(PICTURE, MADE, kind, mark_generated=mark)))
        for mark in (True, False)
    )
    assert marked.tobytes() == plain.tobytes()
    assert dict(marked.getexif()) == dict(plain.getexif())
    assert marked.info.get("realword") == plain.info.get("realword")


def test_masks_are_marked_too() -> None:
    data = png_with_provenance(PICTURE.convert("L"), MADE)
    assert packet(data) is not None
    assert json.loads(Image.open(io.BytesIO(data)).info["realword"])["prompt"] == MADE.prompt
