"""Requests with learned concepts: each sees its own, whatever is painted beside it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.concepts.concept import ConceptError
from model.concepts.folder import write_concept
from model.painting.painter import RequestPainter
from model.painting.request import PaintedPicture, PictureRequest, RequestFieldError
from tests.support.concepts import METHODS, xti
from tests.support.local_painters import noise_picture, tiny_painter

PLACEHOLDERS = {name: "sks" if name in ("dreambooth", "whole_models") else "[v]" for name in METHODS}
CAT = {"picture": noise_picture(1), "word": "cat"}


@pytest.fixture(scope="module")
def painter(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RequestPainter:
    painter = tiny_painter(sd_folder)
    folder = tmp_path_factory.mktemp("concepts")
    for name, make in METHODS.items():
        write_concept(folder / name, make(painter.pipeline))
        painter.concepts.offer(name, folder / name)
    return painter


def pixels(painted: PaintedPicture) -> bytes:
    return Image.open(io.BytesIO(painted.picture)).tobytes()


def request(name: str, **options: Any) -> dict[str, Any]:
    prompt = f"a {PLACEHOLDERS[name]} cat in a hat" if name else "a cat in a hat"
    return {"prompt": prompt, "concepts": [name] if name else [], **options}


def test_concepts_of_all_methods_are_painted_beside_each_other(painter: RequestPainter) -> None:
    requests = [request(name) for name in ("", *METHODS)] + [request("custom_diffusion", subjects=[CAT])]
    prepared = [painter.prepare(**one).pictures[0] for one in requests]
    alone = [pixels(painter.paint([picture])[0]) for picture in prepared]
    assert len(set(alone)) == len(alone)
    assert [pixels(painted) for painted in painter.paint(prepared)] == alone
    assert [pixels(painted) for painted in painter.paint(prepared[::-1])] == alone[::-1]


def test_dci_changes_the_picture_and_is_in_its_metadata(painter: RequestPainter) -> None:
    plain, with_dci = (
        painter.prepare(**request("textual_inversion", **dci)).pictures[0]
        for dci in ({}, {"dci_lambda": 1.0, "dci_share": 0.5})
    )
    first, second = painter.paint([plain, with_dci])
    assert pixels(first) != pixels(second)
    made = with_dci.provenance.as_json()
    assert '"concepts": ["textual_inversion"]' in made
    assert '"injection_strength": 1.0' in made
    assert "dci" not in plain.provenance.as_json()


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        (
            {"concepts": ["dog"]},
            "concepts",
            "no concept 'dog'; there are: textual_inversion",
        ),
        ({"prompt": "a cat in a hat"}, "prompt", r"does not name the concept 'textual_inversion'; write '\[v\] "),
        ({"concepts": ["textual_inversion", "xti"]}, "concepts", r"two concepts have the placeholder '\[v\]'"),
        ({"prompt": "a [v] in a hat", "dci_lambda": 1.0}, "dci_lambda", "DCI needs a prompt with one concept"),
        ({"concepts": [], "dci_lambda": 1.0}, "dci_lambda", "which needs a model or the field 'concepts'"),
        ({"dci_share": 0.5, "dci_auxiliary_noun": "cat"}, "dci_auxiliary_noun", "choose another"),
    ],
)
def test_refusals(painter: RequestPainter, changes: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(RequestFieldError, match=message) as error:
        painter.prepare(**{**request("textual_inversion"), **changes})
    assert error.value.field == field


def test_a_placeholder_counts_with_all_its_vectors(painter: RequestPainter) -> None:
    one, more = (painter.prepare(**request(name)).text_tokens for name in ("textual_inversion", "several_vectors"))
    assert more > one


def test_a_concept_of_another_backbone_is_not_offered(sd_folder: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    write_concept(tmp_path / "xti", xti(tiny_painter(sdxl_folder).pipeline))
    other = tiny_painter(sd_folder)
    with pytest.raises(ConceptError, match="another backbone"):
        other.concepts.offer("xti", tmp_path / "xti")


def test_a_request_keeps_its_concept_when_another_one_takes_the_name(sd_folder: Path, tmp_path: Path) -> None:
    painter, folder = tiny_painter(sd_folder), tmp_path / "mug"
    prepared: list[PictureRequest] = []
    alone: list[bytes] = []
    for name in ("textual_inversion", "several_vectors"):
        write_concept(folder, METHODS[name](painter.pipeline))
        painter.concepts.offer("mug", folder)
        prepared += painter.prepare("a [v] cat in a hat", concepts=["mug"]).pictures
        alone += map(pixels, painter.paint(prepared[-1:]))
        painter.concepts.withdraw("mug")
        shutil.rmtree(folder)
    assert list(map(pixels, painter.paint(prepared))) == alone
    assert alone[0] != alone[1]
    with pytest.raises(RequestFieldError, match="no concept 'mug'; there are: none"):
        painter.prepare("a [v] cat in a hat", concepts=["mug"])


def test_whole_models_are_offered_while_a_concept_is_loaded(painter: RequestPainter, tmp_path: Path) -> None:
    with painter.concepts.using(()):
        write_concept(tmp_path, METHODS["whole_models"](painter.pipeline))
    painter.paint(painter.prepare(**request("several_vectors")).pictures)
    assert painter.concepts.loaded  # its tokens make the table longer
    painter.concepts.offer("other", tmp_path)
    painter.concepts.withdraw("other")
