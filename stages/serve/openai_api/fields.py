"""The fields of OpenAI's images API that this server has, and its own: checked, and published in the schema.

A field that is not here is refused by name. Of fields whose other values this server cannot honour, only the harmless
values are allowed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from model.files import text_damage
from model.methods.names import MethodName
from model.pictures.provenance import PictureFormat
from stages.serve.uploaded_concepts import MAX_NAME, is_concept_name
from stages.serve.web.bodies import MAX_TEXT_CHARACTERS
from stages.serve.web.errors import RequestError
from stages.serve.web.generate import MAX_SEED

MAX_SUBJECTS = 16  # as in OpenAI's API
_MAX_SCALE = 100.0  # beyond it pictures are noise, and half precision overflows
_MAX_NAME = 80
#: Pictures by URL or by a file's id, as OpenAI's API takes them in JSON, or in the wrong route.
_PICTURE_NAME = re.compile(r"^(images?|mask)\b|url|file_id", re.IGNORECASE)
_HOW_PICTURES = "send pictures as files in a form to POST /v1/images/edits; nothing is fetched by URL or id"


def _undamaged(text: str) -> str:
    if damage := text_damage(text):
        raise ValueError(damage)
    return text


def _listed(names: Any) -> Any:
    """A form has a list as JSON, or as names with commas between them."""
    if not isinstance(names, str):
        return names
    try:
        listed = json.loads(names)
    except (ValueError, RecursionError):
        listed = [name.strip() for name in names.split(",")]
    return listed if isinstance(listed, list) else [listed]


def _concept_name(name: str) -> str:
    if not is_concept_name(name):
        raise ValueError(
            f"it must be letters, digits, '-', '_' and '.' inside, {MAX_NAME} at most, and no device's name"
        )
    return name


def _placeholder(text: str) -> str:
    if not all(_is_visible(character) and character != "," for character in text):
        raise ValueError("it must be without spaces, commas and characters that cannot be seen")
    return text


def _one_line(text: str) -> str:
    if not all(_is_visible(character) or character == " " for character in text) or "," in text:
        raise ValueError("it must be words on one line, without commas")
    return text


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CZ"


Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARACTERS), AfterValidator(_undamaged)]
Prompt = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT_CHARACTERS),
    AfterValidator(_undamaged),
]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Scale = Annotated[float, Field(ge=0, le=_MAX_SCALE, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Scope = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
DCIStrength = Annotated[float, Field(ge=-_MAX_SCALE, le=_MAX_SCALE, allow_inf_nan=False)]
ConceptNames = Annotated[list[Name], Field(max_length=MAX_SUBJECTS), BeforeValidator(_listed)]
ConceptName = Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(_concept_name)]
Placeholder = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=_MAX_NAME),
    AfterValidator(_undamaged),
    AfterValidator(_placeholder),
]
ClassWord = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=_MAX_NAME),
    AfterValidator(_undamaged),
    AfterValidator(_one_line),
]
Size = Annotated[str, StringConstraints(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")]
Given = TypeVar("Given", bound=BaseModel)


class ImageFields(BaseModel):
    """What both routes have."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt = Field(examples=["a photo of a [mug] in the snow"])
    model: str | None = Field(default=None, description="One of GET /v1/models; by default the one that is served.")
    n: int = Field(1, ge=1, le=10, description="Pictures; their seeds follow each other.")
    size: Size = Field("auto", description="Width x height in pixels; auto is the model's own.", examples=["64x64"])
    output_format: PictureFormat = "png"
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="Quality of webp and jpeg; 100 by default."
    )
    response_format: Literal["b64_json"] = "b64_json"
    background: Literal["auto", "opaque"] = "auto"
    quality: Literal["auto"] = Field("auto", description="`steps` sets the quality.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    partial_images: int = Field(0, ge=0, le=3, description="Previews of each picture, with stream.")
    user: Text | None = None
    safety_identifier: Text | None = Field(default=None, description="Returned with the answer.")

    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="Of the first picture; by default drawn.")
    steps: int | None = Field(default=None, ge=1, description="Denoising steps.")
    guidance_scale: Scale | None = None
    negative_prompt: Text | None = None
    concepts: ConceptNames = Field(
        default=[], description="Learned concepts that the prompt names, besides that of `model`.", examples=[["mug"]]
    )
    dci_lambda: DCIStrength | None = Field(
        default=None, description="DCI's lambda for a concept, usually -2 to 2: a larger one follows the prompt more."
    )
    dci_auxiliary_noun: Name | None = Field(default=None, description="DCI's common noun; by default a likely one.")
    dci_share: Share | None = Field(default=None, description="Share of the steps in which DCI has a second branch.")


class GenerationFields(ImageFields):
    """Of `POST /v1/images/generations`: a picture from text alone."""

    prompt: Prompt = Field(examples=["a photo of a mug in the snow"])
    moderation: Literal["auto"] = "auto"


class EditFields(ImageFields):
    """Of `POST /v1/images/edits`, besides the files `image` (one or more) and `mask`."""

    subjects: str | None = Field(
        default=None,
        description="JSON: for each picture an object with word, scope, strength and mask (a PNG in base64, transparent"
        " where the subject may be); `picture`, counted from 0, lets more than one stand for a picture. Without it, the"
        " words are marked in the prompt.",
        examples=['[{"word": "mug", "scope": 0.2, "strength": 1.0}]'],
    )
    method: MethodName | None = Field(default=None, description="Refused if the model is of another method.")
    image_guidance_scale: Scale | None = Field(default=None, description="Of models of the method realcustom.")
    visual_scale: Scale | None = Field(default=None, description="Strength of all subjects without their own.")
    visual_guidance_start: Share = Field(0.0, description="Share of the steps before the subjects act.")
    visual_guidance_end: Share = Field(1.0, description="Share of the steps after which they no longer do.")
    mask_scope: Scope | None = Field(
        default=None, description="Share of the picture that a subject without its own may take."
    )
    mask_steps: int | None = Field(default=None, ge=1, description="Steps in which masks are found.")
    mask_every: int | None = Field(default=None, ge=1, description="1: exact masks; 3: every third step, faster.")
    mask_binary: bool | None = Field(default=None, description="No weights inside masks.")
    use_mask: bool = Field(True, description="false: subjects act on the whole picture.")
    return_masks: bool = Field(False, description="Answer with the masks, as `mask_b64_json`.")


class ConceptFields(BaseModel):
    """Of `POST /v1/concepts`, besides its files."""

    model_config = ConfigDict(extra="forbid")

    name: ConceptName = Field(
        description="Letters, digits, - _ and . inside; the model is <name of the model>:<this name>.",
        examples=["my-mug"],
    )
    placeholder: Placeholder | None = Field(
        default=None, description="As it is written in prompts; only with files of another tool.", examples=["[v]"]
    )
    word: ClassWord | None = Field(
        default=None, description="The class word; only with files of another tool.", examples=["mug"]
    )


def checked(kind: type[Given], values: Mapping[str, Any], *, strict: bool, param: str | None = None) -> Given:
    """The fields, or the first error.

    Args:
        kind: Which fields there are.
        values: By name; None is as if the field were not there.
        strict: Numbers must be numbers, not text (JSON, not a form).
        param: What the error names instead of the field.

    Raises:
        RequestError: 400; a field is missing, unknown or invalid.
    """
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return kind.model_validate(given, strict=strict)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
        raise _field_error(str(first["loc"][0])[:_MAX_NAME] if first["loc"] else "", first, param) from error


def _field_error(name: str, problem: Mapping[str, Any], param: str | None) -> RequestError:
    where = f"The field {name!r}" if param is None else f"{name!r} in the field {param!r}"
    named = param or name
    if problem["type"] == "extra_forbidden":
        advice = f"; {_HOW_PICTURES}" if _PICTURE_NAME.search(str(problem["loc"][0])) else ""
        return RequestError(400, f"{where} is not supported{advice}.", named, "unknown_parameter")
    if problem["type"] == "missing":
        return RequestError(400, f"{where} is missing.", named, "missing_required_parameter")
    reason = problem["msg"].removeprefix("Value error, ")
    reason = reason[0].lower() + reason[1:]
    return RequestError(400, f"{where} is not valid: {reason}.", named, "invalid_value")
