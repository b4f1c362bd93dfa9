"""Which picture stands for which word: the field `subjects`, or words marked in the prompt, "a [toy] in a jungle"."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from stages.serve.openai_api.fields import MAX_SUBJECTS, Prompt, Scale, Scope, checked
from stages.serve.web.errors import RequestError

_MARK = re.compile(r"\[([^\[\]]*)\]")
_DATA_URL = re.compile(r"^data:image/[a-z+]+;base64,", re.IGNORECASE)
_EXAMPLE = 'for example [{"word": "toy"}]'
HOW_TO_NAME = 'mark them in the prompt, as in "a [toy] in the jungle", or send subjects=[{"word": "toy"}]'


class SubjectEntry(BaseModel):
    """One subject in the field `subjects`."""

    model_config = ConfigDict(extra="forbid")

    word: Prompt | None = None
    picture: int | None = Field(default=None, ge=0)
    scope: Scope | None = None
    strength: Scale | None = None
    mask: str | None = None


def read_subjects(
    prompt: str,
    field: str | None,
    pictures: Sequence[bytes],
    mask: bytes | None,
    placeholders: Collection[str] = (),
    *,
    use_mask: bool,
) -> tuple[str, list[dict[str, Any]]]:
    """The prompt without marks, and the subjects as `RequestPainter.prepare` takes them.

    Args:
        prompt: Words in brackets stand for the pictures, in their order, if there is no field `subjects`.
        field: `subjects`.
        pictures: Encoded.
        mask: Of the first picture, encoded.
        placeholders: Of learned concepts, which may be in brackets too.
        use_mask: Whether words, masks and scopes are used.

    Raises:
        RequestError: 400; the subjects, pictures, words and masks do not fit together.
    """
    if field is not None:
        entries = _entries(field, len(pictures))
    else:
        prompt, entries = _marked(prompt, len(pictures), placeholders)
    subjects = [_subject(number, entry, pictures) for number, entry in enumerate(entries)]
    of_first = [subject for subject in subjects if subject["picture"] is pictures[0]]
    if mask is not None:
        if len(of_first) > 1 or of_first[0]["mask"] is not None:
            raise RequestError(400, "The first picture has a mask already, or more than one subject.", "mask")
        of_first[0]["mask"] = mask
    if not use_mask and any(subject["mask"] is not None or subject["scope"] is not None for subject in subjects):
        raise RequestError(400, "A mask and a scope need use_mask=true.", "use_mask")
    return prompt, subjects


def _entries(field: str, pictures: int) -> list[SubjectEntry]:
    try:
        given = json.loads(field)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The field 'subjects' is no valid JSON; {_EXAMPLE}.", "subjects") from error
    given = [given] if isinstance(given, dict) else given
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise RequestError(400, f"The field 'subjects' must be a JSON list of objects; {_EXAMPLE}.", "subjects")
    if len(given) > MAX_SUBJECTS:
        raise RequestError(400, f"There are {len(given)} subjects; at most {MAX_SUBJECTS} are accepted.", "subjects")
    entries = [checked(SubjectEntry, one, strict=True, param="subjects") for one in given]
    used = {number if entry.picture is None else entry.picture for number, entry in enumerate(entries)}
    if used != set(range(pictures)):
        raise RequestError(
            400,
            f"{len(entries)} subjects for {pictures} pictures: give one for each, in their order, or say with "
            "'picture', counted from 0, which picture each one has.",
            "subjects",
        )
    return entries


def _marked(prompt: str, pictures: int, placeholders: Collection[str]) -> tuple[str, list[SubjectEntry]]:
    kept = {placeholder.casefold() for placeholder in placeholders}
    marks = [mark for mark in _MARK.finditer(prompt) if mark[0].casefold() not in kept]
    words = [mark[1].strip() for mark in marks]
    if not words:
        return prompt, [SubjectEntry() for _ in range(pictures)]
    if len(words) != pictures or not all(words):
        reason = f"The prompt marks {len(words)} words for {pictures} pictures; mark one for each, or send subjects."
        raise RequestError(400, reason, "prompt")
    plain = _MARK.sub(lambda mark: mark[0] if mark[0].casefold() in kept else mark[1], prompt)
    return plain, [SubjectEntry(word=word) for word in words]


def _subject(number: int, entry: SubjectEntry, pictures: Sequence[bytes]) -> dict[str, Any]:
    return {
        "picture": pictures[number if entry.picture is None else entry.picture],
        "word": entry.word,
        "scope": entry.scope,
        "scale": entry.strength,
        "mask": None if entry.mask is None else _decoded(entry.mask),
    }


def _decoded(mask: str) -> bytes:
    try:
        return base64.b64decode(_DATA_URL.sub("", mask), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, "A mask in the field 'subjects' must be a PNG in base64.", "subjects") from error
