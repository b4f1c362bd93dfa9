"""The contextualizer stage on a handful of prompts, and the customize stage on its output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.torch import load_file

from model.concepts.contextualizer import Contextualizer
from stages.contextualizer import stage as contextualizer
from stages.contract import Reporter, StageError
from stages.customize import stage as customize
from stages.customize.config import CustomizeConfig
from stages.data.datasets import write_dataset
from stages.data.schemas import PROMPTS, content_id
from tests.support.contexts import make_context
from tests.support.random_backbone import write_random_backbone

TRAINER = {"workers": 2, "checkpoint_every": 100}


def write_prompts(folder: Path) -> Path:
    backgrounds = ("on the beach", "in the snow", "on the grass", "in the forest", "on a city street", "in the ocean")
    rows = [
        {
            "prompt_id": content_id(concept, background),
            "concept": concept,
            "prompt": f"a photo of a [v] {concept} {background}",
            "variation": "background",
            "writer": "grammar",
        }
        for concept in ("toy", "mug", "ball", "duck")
        for background in backgrounds
    ]
    write_dataset(folder / "prompts", pa.Table.from_pylist(rows, schema=PROMPTS), PROMPTS)
    return folder


def write_subjects(folder: Path) -> Path:
    place = folder / "subjects" / "toy" / "test-1"
    place.mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02d}.png")
    pictures = [f"toy/test-1/{number:02d}.png" for number in range(4)]
    album = ["toy/test-1/album.png"]
    listing = [{"subject": "test-1", "word": "toy", "category": "bear", "pictures": pictures, "album": album}]
    (folder / "subjects" / "subjects.json").write_text(json.dumps(listing))
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    write_random_backbone(folder / "base" / "backbone")
    return {
        "base": folder / "base",
        "prompts": write_prompts(folder / "prompts"),
        "microworld": write_subjects(folder / "microworld"),
    }


def test_prompts_lose_their_placeholder_and_are_split_by_their_sentences() -> None:
    """The sentence around the concept decides, so that a held-out sentence is new whatever it is about."""
    concepts = ("toy", "coffee mug", "duck")
    prompts = [(concept, f"a [v] {concept} {number}") for number in range(300) for concept in concepts]
    train, held_out = contextualizer.split_prompts(prompts)
    assert sorted(train + held_out) == sorted(f"a {concept} {number}" for number in range(300) for concept in concepts)
    assert 30 <= len(held_out) <= 180
    numbers = [prompt.split()[-1] for prompt in held_out]
    assert all(numbers.count(number) == len(concepts) for number in numbers)
    assert contextualizer.split_prompts(prompts[::-1])[1] == held_out[::-1]


@pytest.mark.slow
def test_contextualizer_then_customize(ray_cluster: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    context = make_context(
        tmp_path / "contextualizer", inputs, contextualizer={"steps": 10, "batch_size": 8, "trainer": TRAINER}
    )
    result = contextualizer.run(context)
    assert {"held_out_accuracy", "majority_accuracy", "unigram_accuracy", "held_out_positions"} <= result.metrics.keys()
    folder = context.output / "contextualizer"
    assert Contextualizer.from_pretrained(folder).config["num_layers"] == 4
    assert len(json.loads((folder / "prompts.json").read_text())) == 24

    events: list[Mapping[str, Any]] = []
    context = make_context(
        tmp_path / "customize",
        {**inputs, "contextualizer": context.output},
        events,
        customize={"steps": 4, "batch_size": 2},
        inference={"steps": 2, "mask_steps": 1},
    )
    result = customize.run(context)
    concept = context.output / "concept"
    assert load_file(concept / "learned_embeds.safetensors")["[v]"].shape == (1, 128)
    described = json.loads((concept / "concept.json").read_text())
    assert described["method"] == "textual_inversion"
    assert described["backbone"] == "backbone"
    named = {key: described["tokens"][0][key] for key in ("placeholder", "word", "subject")}
    assert named == {"placeholder": "[v]", "word": "toy", "subject": "test-1"}
    assert Image.open(context.output / "samples.png").size == (256, 192)
    assert {"diffusion", "mlm"} <= result.metrics.keys()
    assert [event["step"] for event in events if event.get("key") == "concept/mlm"] == [1, 2, 3, 4]

    unknown = make_context(
        tmp_path / "unknown", dict(context.inputs), customize={"word": "zebra", "subject": str(tmp_path / "pictures")}
    )
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (80, 64)).save(tmp_path / "pictures" / "one.png")
    with pytest.raises(StageError, match="the class word 'zebra' is not in the text encoder's vocabulary"):
        customize.run(unknown)


def test_subject_errors(inputs: dict[str, Path], tmp_path: Path) -> None:
    def find(**settings: Any) -> customize.Subject:
        return customize.find_subject(CustomizeConfig(**settings), inputs, Reporter(emit=lambda event: None))

    assert find(word="toy").name == "test-1"
    assert [path.name for path in find(word="toy", pictures="album").pictures] == ["album.png"]
    with pytest.raises(StageError, match=r"'mug': set customize.word to one of toy"):
        find(word="mug")
    with pytest.raises(StageError, match="is not a folder"):
        find(subject=str(tmp_path / "nowhere"))
    with pytest.raises(StageError, match="has no picture"):
        find(subject=str(tmp_path))
    broken = tmp_path / "one.png"
    broken.write_text("no picture")
    assert find(subject=str(tmp_path), word="dog").pictures == [broken]


#: What a user's folder may hold, besides four pictures: the content, and whether it is used, left out or not mentioned.
FOLDERS: dict[str, tuple[str, bytes | Image.Image, str]] = {
    "a wide picture": ("x.png", Image.new("RGB", (300, 40), "red"), "used"),
    "a tiny picture": ("x.png", Image.new("RGB", (3, 5), "red"), "used"),
    "grey": ("x.jpg", Image.new("L", (70, 90), 128), "used"),
    "16 bits": ("x.png", Image.new("I;16", (70, 90), 40000), "used"),
    "alpha": ("x.png", Image.new("RGBA", (70, 90), (255, 0, 0, 0)), "used"),
    "grey with alpha": ("x.png", Image.new("LA", (70, 90), (255, 0)), "used"),
    "a palette": ("x.gif", Image.new("P", (70, 90), 3), "used"),
    "black and white": ("x.png", Image.new("1", (70, 90), 1), "used"),
    "CMYK": ("x.jpg", Image.new("CMYK", (70, 90), (0, 255, 0, 0)), "used"),
    "WebP": ("x.webp", Image.new("RGB", (70, 90), "blue"), "used"),
    "a suffix in upper case": ("X.JPG", Image.new("RGB", (70, 90), "blue"), "used"),
    "a PNG named .jpg": ("x.jpg", b"PNG", "used"),
    "empty": ("x.jpg", b"", "left out"),
    "text": ("x.jpg", b"no picture", "left out"),
    "a web page": ("x.png", b"<html></html>", "left out"),
    "cut off": ("x.png", b"CUT", "left out"),
    "HEIC named .jpg": ("x.jpg", b"\0\0\0\x18ftypheic", "left out"),
    "HEIC": ("x.heic", b"\0\0\0\x18ftypheic", "left out"),
    "a TIFF": ("x.tif", b"II*\0", "left out"),
    "a name that starts with _": ("_x.png", b"PNG", "left out"),
    "a hidden file": (".x.png", b"", "not mentioned"),
    "a Windows database": ("Thumbs.db", b"", "not mentioned"),
    "notes": ("notes.txt", b"my cat", "not mentioned"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "outcome"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_as_users_have_them(name: str, content: Any, outcome: str, tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (80, 60 + number)).save(tmp_path / f"{number}.png")
    png = (tmp_path / "0.png").read_bytes()
    if isinstance(content, Image.Image):
        content.save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes({b"PNG": png, b"CUT": png[:-30]}.get(content, content))
    pictures, warnings = read_folder(tmp_path)
    assert len(pictures) == (5 if outcome == "used" else 4)
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (32, 32))}
    assert len(warnings) == (outcome == "left out")
    assert all("left out" in warning and name in warning for warning in warnings)


def read_folder(folder: Path) -> tuple[list[Image.Image], list[str]]:
    events: list[Mapping[str, Any]] = []
    report = Reporter(emit=events.append)
    subject = customize.find_subject(CustomizeConfig(subject=str(folder), word="cat"), {}, report)
    pictures = customize.read_pictures(subject, 32, report)
    return pictures, [event["text"] for event in events]


def test_a_picture_is_upright_and_the_first_six_are_read(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 40), "red")
    picture.paste("blue", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for number in range(8):
        picture.save(tmp_path / f"{number}.jpg", exif=exif)
    (tmp_path / "1.jpg").write_bytes(b"")
    pictures, warnings = read_folder(tmp_path)
    assert len(pictures) == 6
    assert [("1.jpg" in warning) for warning in warnings] == [True]
    red, _, blue = np.asarray(pictures[0])[4, 16]
    assert red > 200 > 50 > blue


def test_one_picture_is_said_and_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(StageError, match=r"no picture of customize.subject can be read.*a\.png"):
        read_folder(tmp_path)
    Image.new("RGB", (80, 60)).save(tmp_path / "b.png")
    pictures, warnings = read_folder(tmp_path)
    assert len(pictures) == 1
    assert len(warnings) == 2
    assert "has one picture" in warnings[1]


def test_rich_prompts_are_about_the_word(tmp_path: Path) -> None:
    listed = [{"concept": "mug", "prompt": "a [v] mug at night"}, {"concept": "toy", "prompt": "a [v] toy in the snow"}]
    (tmp_path / "prompts.json").write_text(json.dumps(listed))
    own = customize.rich_prompts(tmp_path / "prompts.json", CustomizeConfig(word="toy", placeholder="<c>"))
    assert own == ["a <c> toy in the snow"]
    others = customize.rich_prompts(tmp_path / "prompts.json", CustomizeConfig(word="dog"))
    assert others == ["a [v] dog at night", "a [v] dog in the snow"]
