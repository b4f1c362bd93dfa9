"""Encoded requests, validated: what `RequestPainter.prepare` accepts can be painted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from pydantic import ValidationError

from model.errors import ModelError
from model.guidance.masks import Grid
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject
from model.methods.registry import method_of
from model.painting.request import RequestFieldError
from model.pictures.decoding import MAX_PIXELS, load_picture, open_picture
from model.pictures.provenance import SubjectProvenance
from model.pipeline import RealCustomPipeline

ReadSubject = tuple[Subject, SubjectProvenance]

#: A picture may have this many times the pixels of the backbone's training pictures, and sides from half of theirs.
_MAX_AREA = 4


@contextmanager
def field_errors(name: str) -> Iterator[None]:
    """Name the field in errors of the block.

    Raises:
        RequestFieldError: A `ModelError` was raised.
    """
    try:
        yield
    except RequestFieldError:
        raise
    except ModelError as error:
        raise RequestFieldError(name, str(error)) from error


def picture_size(pipeline: RealCustomPipeline, size: tuple[int, int] | None) -> Grid:
    """Height and width of a picture, from width and height or the backbone's resolution.

    Raises:
        RequestFieldError: The backbone cannot paint this size.
    """
    backbone = pipeline.backbone
    side, step = backbone.resolution, backbone.latent_scale
    if size is None:
        return side, side
    width, height = size
    if width % step or height % step or min(size) < side // 2 or width * height > _MAX_AREA * side * side:
        raise RequestFieldError(
            "size",
            f"a picture of {width} x {height} pixels: this model paints sides that are multiples of {step} from "
            f"{side // 2} pixels on, up to {_MAX_AREA * side * side} pixels in all; its own size is {side} x {side}.",
        )
    return height, width


def inference_settings(
    pipeline: RealCustomPipeline, defaults: InferenceSettings, *, method: str | None = None, **options: Any
) -> InferenceSettings:
    """The default settings with some replaced.

    Raises:
        RequestFieldError: An option does not fit another one or the adapter's method.
    """
    own = None if pipeline.adapter is None else method_of(pipeline.adapter).name
    if method not in (None, own):
        raise RequestFieldError("method", f"this model is of the method {own}.")
    if "image_guidance_scale" in options and own != "realcustom":
        raise RequestFieldError("image_guidance_scale", "only models of the method realcustom have it.")
    steps = options.pop("steps", None)
    base = defaults if steps is None else defaults.with_steps(steps)
    try:
        return replace(base, **options)
    except ValidationError as error:
        name = "mask_steps" if "mask_steps" in options else next(iter(options), "steps")
        raise RequestFieldError(name, error.errors()[0]["msg"].removeprefix("Value error, ") + ".") from error


@dataclass
class SubjectReader:
    """Decodes the subjects of one request. Equal files become one picture, so that it is encoded once.

    Attributes:
        size: Height and width of the painted picture, to which masks are scaled.
        pictures: Those decoded, by the SHA-256 of their files.
    """

    size: Grid
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    _pixels_left: int = MAX_PIXELS

    def read(self, number: int, given: Mapping[str, Any]) -> ReadSubject:
        """Decode one subject.

        Args:
            number: Of the subject in the request, from 1, for messages.
            given: `picture` (encoded), and as in `Subject` word, scope, scale and mask (encoded, with transparency).

        Raises:
            RequestFieldError: A file cannot be read.
        """
        digest, mask = _sha256(given["picture"]), given.get("mask")
        if digest not in self.pictures:
            with field_errors("picture"):
                self.pictures[digest] = self._decode(given["picture"])
        values = {"word": given.get("word"), "scope": given.get("scope"), "scale": given.get("scale")}
        drawn = None if mask is None else read_mask(mask, self.size, f"the mask of picture {number}")
        made = SubjectProvenance(sha256=digest, mask_sha256=None if mask is None else _sha256(mask), **values)
        return Subject(picture=self.pictures[digest], mask=drawn, **values), made

    def _decode(self, data: bytes) -> Image.Image:
        """All pictures of a request together have at most as many pixels as one may have."""
        picture = load_picture(data, max(1, self._pixels_left))
        self._pixels_left -= picture.width * picture.height
        return picture


def read_mask(data: bytes, size: Grid, name: str) -> Image.Image:
    """A mask as the pipeline takes it, from a picture that is transparent where the subject may be.

    Args:
        data: An encoded picture of any size; it is scaled to that of the painted picture.
        size: Height and width of the painted picture, pixels.
        name: For messages.

    Raises:
        RequestFieldError: It is no picture, or nowhere wholly transparent.
    """
    with field_errors("mask"), open_picture(data, name=name) as opened:
        alpha = opened.upright_alpha()
    if alpha is None or alpha.getextrema()[0] != 0:
        raise RequestFieldError("mask", f"{name} has no transparent pixel: the subject may be where it is transparent.")
    drawn = alpha.point([255] + [0] * 255)
    return drawn.resize((size[1], size[0]), Image.Resampling.BOX)


def check_words(pipeline: RealCustomPipeline, prompt: str, subjects: Sequence[Subject]) -> None:
    """Check that the words are in the prompt.

    Raises:
        RequestFieldError: One is not.
    """
    with field_errors("word"):
        for subject in subjects:
            if subject.word is not None:
                pipeline.backbone.token_positions(prompt, subject.word)


def check_length(pipeline: RealCustomPipeline, name: str, text: str) -> None:
    """Check that the text encoders read all of a prompt.

    Raises:
        RequestFieldError: They would leave out its end.
    """
    if end := pipeline.backbone.cut_off(text):
        limit = pipeline.backbone.tokenizers[0].model_max_length
        raise RequestFieldError(name, f"this model reads {limit} tokens and would leave out {end!r}; shorten it.")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
