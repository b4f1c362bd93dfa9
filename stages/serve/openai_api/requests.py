"""OpenAI's requests, read into what the painters take."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from stages.serve.config import ServeConfig
from stages.serve.openai_api.fields import MAX_SUBJECTS, EditFields, GenerationFields, ImageFields, checked
from stages.serve.openai_api.models import Models
from stages.serve.openai_api.subjects import HOW_TO_NAME, read_subjects
from stages.serve.painting import Refused
from stages.serve.web.bodies import check_pixels, multipart_form, read_json_object, read_pictures, read_text
from stages.serve.web.errors import RequestError
from stages.serve.web.generate import MAX_SEED

_MAX_PARTS = 64
_DRAWN_SEED = 2**31  # smaller ones, which JavaScript's numbers hold
#: One picture is `image`; a list is `image[]` or `image[0]`, `image[1]`, ... by client.
_IMAGE = re.compile(r"^image(\[\d{0,3}\])?$")
_OPTIONS = ("steps", "guidance_scale", "dci_lambda", "dci_auxiliary_noun", "dci_share")
_MASK_OPTIONS = ("mask_scope", "mask_steps", "mask_every", "mask_binary")
_SUBJECT_OPTIONS = ("method", "image_guidance_scale", "visual_scale", *_MASK_OPTIONS)


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """A request for pictures.

    Attributes:
        kind: The prefix of its events' types.
        asked: Its fields.
        painting: The arguments of `RequestPainter.prepare`.
        return_masks: Answer with the masks.
    """

    kind: Literal["image_edit", "image_generation"]
    asked: ImageFields
    painting: Mapping[str, Any]
    return_masks: bool = False

    @property
    def _words(self) -> list[str | None]:
        return [subject["word"] for subject in self.painting.get("subjects", ())]

    def refusal(self, refused: Refused) -> RequestError:
        """The error for what a painter refuses, with the field's name in this API."""
        renamed = {"picture": "image", "word": "prompt" if self._is_marked else "subjects", "": None}
        how = f" Please {HOW_TO_NAME}." if refused.field == "word" and None in self._words else ""
        field = renamed.get(refused.field, refused.field)
        return RequestError(400, refused.message + how, field, refused.code)

    @property
    def _is_marked(self) -> bool:
        is_edit = isinstance(self.asked, EditFields) and self.asked.subjects is None
        return is_edit and None not in self._words


async def read_generation(request: Request, settings: ServeConfig, models: Models) -> ImageRequest:
    """A JSON body of `POST /v1/images/generations`.

    Raises:
        RequestError: It cannot be read, or a field is missing, unknown or invalid.
    """
    asked = checked(GenerationFields, await read_json_object(request), strict=True)
    concepts, _ = await models.concepts_of(asked.model, asked.concepts)
    painting = {**_painting(asked, settings), "prompt": asked.prompt, "concepts": concepts}
    return ImageRequest(kind="image_generation", asked=asked, painting=painting)


async def read_edit(request: Request, settings: ServeConfig, models: Models) -> ImageRequest:
    """A form of `POST /v1/images/edits`.

    Raises:
        RequestError: As `read_generation`, or 413: the pictures are too large.
    """
    limit, example = settings.max_picture_bytes, "a picture `image` and a `prompt`"
    async with multipart_form(request, limit, _MAX_PARTS, example) as form:
        names = list(dict.fromkeys(name for name, _ in form.multi_items()))
        files = [part for name, part in form.multi_items() if _IMAGE.match(name)]
        texts = {name: await _text(form, name) for name in names if not _IMAGE.match(name) and name != "mask"}
        asked = checked(EditFields, texts, strict=False)
        if not files:
            raise RequestError(400, "The field 'image' is missing.", "image", "missing_required_parameter")
        if len(files) > MAX_SUBJECTS:
            raise RequestError(400, f"There are {len(files)} pictures; at most {MAX_SUBJECTS} are accepted.", "image")
        pictures = await read_pictures(files, "image", limit, 400)
        mask = await _mask(form, limit - sum(map(len, pictures)))
    _check_masks_used(asked)
    concepts, placeholders = await models.concepts_of(asked.model, asked.concepts)
    prompt, subjects = read_subjects(
        asked.prompt, asked.subjects, pictures, mask, placeholders, use_mask=asked.use_mask
    )
    await _check_pixels(pictures, subjects, settings.max_picture_pixels)
    options = {name: value for name in _SUBJECT_OPTIONS if (value := getattr(asked, name)) is not None}
    painting = {
        **_painting(asked, settings),
        **options,
        "prompt": prompt,
        "concepts": concepts,
        "subjects": subjects,
        "use_mask": asked.use_mask,
        "visual_guidance_start": asked.visual_guidance_start,
        "visual_guidance_end": asked.visual_guidance_end,
    }
    return ImageRequest(kind="image_edit", asked=asked, painting=painting, return_masks=asked.return_masks)


async def _text(form: FormData, name: str) -> str | None:
    """A field's text; None for an empty one, which is how forms leave a field out."""
    values = form.getlist(name)
    if len(values) > 1:
        raise RequestError(400, f"The field {name!r} is there {len(values)} times.", name)
    if isinstance(values[0], UploadFile) and name not in EditFields.model_fields:
        raise RequestError(400, f"The field {name!r} is not supported.", name, "unknown_parameter")
    return await read_text(values[0], name, 400) or None


async def _mask(form: FormData, max_bytes: int) -> bytes | None:
    parts = form.getlist("mask")
    if len(parts) > 1:
        raise RequestError(400, "There is more than one mask; the others belong into the field 'subjects'.", "mask")
    if not parts or parts == [""]:
        return None
    return (await read_pictures(list(parts), "mask", max_bytes, 400))[0]


async def _check_pixels(pictures: list[bytes], subjects: list[dict[str, Any]], limit: int) -> None:
    named = enumerate(pictures, 1)
    files = [("image", "the picture" if len(pictures) == 1 else f"picture {number}", data) for number, data in named]
    files += [
        ("mask", f"the mask of picture {number}", subject["mask"])
        for number, subject in enumerate(subjects, 1)
        if subject["mask"] is not None
    ]
    await check_pixels(files, limit, 400)


def _painting(asked: ImageFields, settings: ServeConfig) -> dict[str, Any]:
    """What both routes ask of the painters."""
    _check_together(asked, settings)
    first = secrets.randbelow(_DRAWN_SEED) if asked.seed is None else asked.seed
    painting = {
        "seeds": [first + number for number in range(asked.n)],
        "size": None if asked.size == "auto" else tuple(map(int, asked.size.split("x"))),
        "negative_prompt": asked.negative_prompt,
        "whole_prompt": True,
        "output_format": asked.output_format,
        "output_compression": asked.output_compression,
        "previews": asked.partial_images,
        "mark_generated": settings.mark_generated,
    }
    return painting | {name: value for name in _OPTIONS if (value := getattr(asked, name)) is not None}


def _check_together(asked: ImageFields, settings: ServeConfig) -> None:
    if asked.partial_images and not asked.stream:
        raise RequestError(400, "Previews need stream=true.", "partial_images")
    if asked.output_compression is not None and asked.output_format == "png":
        raise RequestError(400, "PNG has no quality; ask for webp or jpeg.", "output_compression")
    if asked.steps is not None and asked.steps > settings.max_steps:
        raise RequestError(400, f"The field 'steps' must be at most {settings.max_steps}.", "steps")
    if asked.seed is not None and asked.seed + asked.n - 1 > MAX_SEED:
        raise RequestError(400, f"The seeds of the pictures must be at most {MAX_SEED}.", "seed")


def _check_masks_used(asked: EditFields) -> None:
    given = [name for name in (*_MASK_OPTIONS, "return_masks") if getattr(asked, name)]
    if given and not asked.use_mask:
        raise RequestError(400, f"{given[0]!r} needs use_mask=true.", given[0])
