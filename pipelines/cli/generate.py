"""Paint subjects from a sentence: the command `generate`."""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from model.devices import fastest_device
from model.errors import ModelError
from model.files import printable_name
from model.guidance.settings import InferenceSettings
from model.pictures.decoding import open_picture
from model.pictures.provenance import Provenance, SubjectProvenance, png_with_provenance
from model.pictures.tensors import mask_picture
from model.pipeline import RealCustomPipeline
from model.pipeline_output import RealCustomOutput
from pipelines.cli.painting_model import PaintingModel
from pipelines.cli.painting_progress import PaintingProgress
from pipelines.errors import PipelineError
from stages.config import Config


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture for each subject, all from one prompt.

    Attributes:
        subjects: Picture files.
        words: The word of the prompt that the subject stands for: one for each subject, or one for all.
        seed: Of the first picture; the next one's is one more.
        steps: Of the sampler; None: `inference.steps`.
        settings: The values of the section `inference` that the user has chosen, by name.
    """

    subjects: Sequence[Path]
    words: Sequence[str]
    prompt: str
    seed: int = 0
    steps: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The files of a request: a picture and its mask for each subject.

    Attributes:
        cut_off: The end of the prompt, which the text encoder does not read; "" if it reads all.
    """

    files: list[Path]
    cut_off: str


_MAX_TITLE_CHARACTERS = 80
_MAX_TITLE_BYTES = 160  # file systems allow names of 255 bytes


def generate_picture(
    model: PaintingModel, config: Config, request: Request, folder: Path, progress: PaintingProgress
) -> Generated:
    """Paint the request, and write the files into `folder`.

    Raises:
        PipelineError: A file is no picture or part of no model, a word is not in the prompt, the folder cannot be
            written to.
    """
    transformers.utils.logging.disable_progress_bar()  # `progress` says what is loaded
    try:
        files = [_read(path) for path in request.subjects]
        subjects = [_decode(file, path) for file, path in zip(files, request.subjects, strict=True)]
        with _folder_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        pipeline = RealCustomPipeline.from_pretrained(
            model.backbone,
            model.adapter,
            dtype=getattr(torch, config.backbone.dtype),
            device=fastest_device(),
            on_part=lambda part: progress.show(f"loading the {part}"),
            **model.loading,
        )
        words = list(request.words) * (len(subjects) if len(request.words) == 1 else 1)
        settings = pipeline.settings_over(config.inference, request.settings)
        settings = settings if request.steps is None else settings.with_steps(request.steps)
        painted = _paint(pipeline, request, subjects, words, settings, progress)
    except ModelError as error:
        raise PipelineError(str(error)) from error
    made = [
        Provenance(
            prompt=request.prompt,
            seed=request.seed + number,
            subjects=(SubjectProvenance(word=word, sha256=hashlib.sha256(file).hexdigest()),),
            model=model.title,
            adapter=model.fingerprint,
            settings=settings,
            negative_prompt=pipeline.backbone.negative_prompt,
        )
        for number, (word, file) in enumerate(zip(words, files, strict=True))
    ]
    with _folder_errors(folder):
        return Generated(files=_write(painted, made, folder), cut_off=painted.cut_off[0])


def _paint(
    pipeline: RealCustomPipeline,
    request: Request,
    subjects: Sequence[Image.Image],
    words: Sequence[str],
    settings: InferenceSettings,
    progress: PaintingProgress,
) -> RealCustomOutput:
    """A picture of each subject, all at once."""

    def show_step(_: RealCustomPipeline, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        progress.show("painting, steps", step + 1, settings.steps)
        return {}

    progress.show("encoding the prompt and the subjects")
    return pipeline(
        [request.prompt] * len(subjects),
        subjects,
        words,
        settings=settings,
        seeds=request.seed,
        callback_on_step_end=show_step,
    )


def _read(path: Path) -> bytes:
    """The file of a subject. It is read once, because it may be a pipe."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PipelineError(f"the picture {printable_name(path)} cannot be read: {error.strerror}.") from error


def _decode(file: bytes, path: Path) -> Image.Image:
    with open_picture(file, name=f"the picture {printable_name(path)}") as opened:
        return opened.upright_rgb()


@contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PipelineError(
            f"The pictures cannot be written into {folder}: {error.strerror}; choose another folder with --out."
        ) from error


def _write(painted: RealCustomOutput, made: Sequence[Provenance], folder: Path) -> list[Path]:
    """Write the pictures and masks; each file says how it was made."""
    files: list[Path] = []
    for picture, masks, one in zip(painted.images, painted.masks, made, strict=True):
        contents = {"": png_with_provenance(picture, one)}
        if masks:
            contents["-mask"] = png_with_provenance(mask_picture(masks[-1], min(picture.size)), one)
        files += write_new(folder, f"{file_title(one.prompt)}-{one.seed}", contents)
    return files


def file_title(prompt: str) -> str:
    """A prompt as a part of a file name: letters, combining marks and digits of all scripts, joined by hyphens."""
    text = unicodedata.normalize("NFC", prompt).lower()
    words = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text).split()
    title = "-".join(words)[:_MAX_TITLE_CHARACTERS].encode()[:_MAX_TITLE_BYTES].decode(errors="ignore")
    return title.strip("-") or "picture"


def write_new(folder: Path, name: str, contents: Mapping[str, bytes]) -> list[Path]:
    """Write `name` + suffix + ".png" for each suffix. When one of them exists, all get the next free number.

    No file is ever overwritten.
    """
    for number in itertools.count(1):
        numbered = name if number == 1 else f"{name}-{number}"
        files = [folder / f"{numbered}{suffix}.png" for suffix in contents]
        if not any(os.path.lexists(file) for file in files):
            break
    for file, content in zip(files, contents.values(), strict=True):
        with file.open("xb") as target:
            target.write(content)
    return files
