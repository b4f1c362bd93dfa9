"""A valid request for pictures, and what is painted for it."""

from __future__ import annotations

from dataclasses import dataclass

from model.concepts.concept import Concept
from model.errors import GenerationError
from model.guidance.masks import Grid
from model.guidance.subjects import Subject
from model.pictures.provenance import PictureFormat, Provenance

#: The code of errors about pictures that the safety checker refuses, as in OpenAI's API.
UNSAFE = "moderation_blocked"


class UnsafePictureError(GenerationError):
    """The safety checker refuses a painted picture."""

    code = UNSAFE


class RequestFieldError(GenerationError):
    """A request cannot be painted because of one of its fields.

    Attributes:
        field: An argument of `RequestPainter.prepare`, "picture", "word" or "mask" of a subject, or an option.
        code: For programs.
    """

    def __init__(self, field: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """One picture to paint.

    Attributes:
        subjects: With their decoded pictures and masks.
        size: Height and width, pixels.
        concepts: Learned concepts that are in the model while it is painted.
        provenance: Prompt, seed and settings.
        preview_steps: The steps, counted from 0, after which a preview is shown.
        output_format: Of the picture's file.
        output_compression: Quality from 0 to 100 of a WebP or JPEG; None: 100.
        mark_generated: See `encode_with_provenance`.
    """

    subjects: tuple[Subject, ...]
    size: Grid
    concepts: tuple[Concept, ...] = ()
    provenance: Provenance
    preview_steps: tuple[int, ...] = ()
    output_format: PictureFormat = "png"
    output_compression: int | None = None
    mark_generated: bool = True

    @property
    def steps(self) -> int:
        """Of its denoising."""
        return self.provenance.settings.steps


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A valid request: one or more pictures that differ in their seeds.

    Attributes:
        pictures: To paint.
        words: Of the subjects; None of one with a mask.
        cut_off: The end of the prompt, which the text encoder does not read; "" if it reads all.
        text_tokens: Of the prompt.
        reference_tokens: Image tokens of its distinct subject pictures.
        picture_tokens: Positions of a painted picture's latents.
    """

    pictures: list[PictureRequest]
    words: list[str | None]
    cut_off: str
    text_tokens: int
    reference_tokens: int
    picture_tokens: int


@dataclass(frozen=True, kw_only=True)
class PaintedPicture:
    """A painted picture.

    Attributes:
        picture: An encoded picture.
        mask: Where its subjects were allowed to be (white), a PNG; None if it has none.
        timings: Seconds by part; guidance and generation are of the batches in which its steps were taken.
        batch_size: Of these batches, the mean.
        encodings_kept: Pictures of its subjects whose encoding was in the cache.
        encodings_made: Pictures of its subjects that were encoded for it.
    """

    picture: bytes
    mask: bytes | None
    timings: dict[str, float]
    batch_size: float
    encodings_kept: int = 0
    encodings_made: int = 0


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """The steps after which previews are shown: evenly spread, the first within a third; never the last step."""
    found = (max(number, steps * (2 * number + 1) // (2 * previews + 1) - 1) for number in range(previews))
    return tuple(step for step in found if step < steps - 1)
