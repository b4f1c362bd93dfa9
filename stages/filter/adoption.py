"""Import of captioned pictures that another tool has written, instead of running the stage `ingest`.

Each file becomes a part of the datasets `samples` and `rejected`, as `ingest` would have written them: pictures are
upright RGB JPEGs, and ids are content hashes. Rows that cannot become samples are rejected with a reason. So is the
unreadable rest of a damaged file, as one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from model.files import printable_name, text_damage
from model.pictures.decoding import PictureError
from stages.contract import Reporter
from stages.data.datasets import part_writer
from stages.data.jpeg import upright_jpeg
from stages.data.schemas import LAION_SCORES, REJECTED, SAMPLES, SPELLINGS, content_id
from stages.filter.foreign_rows import CAPTION_NAMES, USUAL, Columns, DamagedFileError, ForeignRow, first_caption
from stages.filter.layouts import ForeignFolder, find_layout
from stages.filter.verdicts import in_batches
from stages.ray_tools.mapping import Progress, Workers, map_on_workers, one_row_batches
from stages.storage import StorePath, name_below, remove

_ROWS_AT_ONCE = 64
_LARGEST_SIDE = 2**31 - 1
_LARGEST_SCORE = 1e30


def adopt(source: StorePath, folder: StorePath, report: Reporter, columns: Columns = USUAL) -> None:
    """Write `samples/` and `rejected/` into `folder`, a part of each for each file of `source`.

    Raises:
        StageError: `source` is not a folder of captioned pictures.
    """
    layout = find_layout(source, columns)
    remove(folder)  # an interrupted call's
    adopted = map_on_workers(
        _adopt_files,
        one_row_batches({"number": number} for number in range(len(layout.files))),
        arguments={"layout": layout, "source": source, "folder": folder},
        workers=Workers(),
        progress=Progress(report=report, total=len(layout.files), note="importing pictures"),
    )
    for _ in adopted:
        pass


def _adopt_files(batch: pa.Table, layout: ForeignFolder, source: StorePath, folder: StorePath) -> Iterator[pa.Table]:
    for number in batch["number"].to_pylist():
        adopt_file(layout, number, source, folder)
        yield pa.table({"number": [number]})


def adopt_file(layout: ForeignFolder, number: int, source: StorePath, folder: StorePath) -> None:
    """Write part `number` of `folder/samples` and `folder/rejected` from the file with this number."""
    file = layout.files[number]
    name = "" if file == source else printable_name(name_below(file, source))
    with (
        part_writer(folder / "samples", number, SAMPLES) as samples,
        part_writer(folder / "rejected", number, REJECTED) as rejected,
    ):
        for rows in in_batches(_rows_of(layout, file, name), _ROWS_AT_ONCE):
            samples.write(pa.Table.from_pylist([row for row in rows if "reason" not in row], schema=SAMPLES))
            rejected.write(pa.Table.from_pylist([row for row in rows if "reason" in row], schema=REJECTED))


def _rows_of(layout: ForeignFolder, file: StorePath, name: str) -> Iterator[dict[str, Any]]:
    """A sample (schema `SAMPLES`) or a rejected row (schema `REJECTED`) for each row of a file."""
    done = 0
    try:
        for row in layout.read(file, name):
            yield adopt_row(row)
            done += 1
    except DamagedFileError as error:
        rest = ForeignRow(origin=f"{name}#{done}", picture=None, fields={})
        yield _rejection(rest, "unreadable", f"after {done} rows: {error}")


def adopt_row(row: ForeignRow) -> dict[str, Any]:
    """Convert a row to a sample, or to a rejected row, which has a `reason`."""
    if row.picture is None:
        errors = (_text(row, name) for name in ("status", "error_message"))
        return _rejection(row, "no_picture", ": ".join(error for error in errors if error) or "null")
    caption = _caption(row)
    if not (caption or "").strip():
        return _rejection(row, "no_caption", "null" if caption is None else "blank")
    if damage := text_damage(caption or ""):
        return _rejection(row, "caption_encoding", f"not UTF-8, or damaged before: {damage}")
    try:
        picture, (width, height) = upright_jpeg(row.picture)
    except PictureError as error:
        return _rejection(row, "undecodable", error.detail)
    sizes = {"width": width, "height": height}
    originals = {f"original_{name}": _side(row, f"original_{name}") or size for name, size in sizes.items()}
    scores = {ours: _number(row, SPELLINGS[ours]) for ours in LAION_SCORES.values()}
    language = _sound(_first_text(row, SPELLINGS["language"]))
    return _head(row) | {"picture": picture} | sizes | originals | scores | {"language": language}


def _head(row: ForeignRow) -> dict[str, Any]:
    """Id, URL and caption. A row without a sound URL has its file and its number in the file instead."""
    url, caption = _sound(_first_text(row, SPELLINGS["url"])) or row.origin, _caption(row)
    return {"sample_id": content_id(url, caption or ""), "url": url, "caption": caption}


def _rejection(row: ForeignRow, reason: str, detail: str) -> dict[str, Any]:
    return _head(row) | {"reason": reason, "detail": " ".join(detail.split())[:200]}


def _caption(row: ForeignRow) -> str | None:
    captions = (first_caption(row.fields.get(name)) for name in CAPTION_NAMES)
    return next((caption for caption in captions if caption is not None), None)


def _first_text(row: ForeignRow, names: Iterable[str]) -> str | None:
    return next((text for name in names if (text := _text(row, name)) is not None), None)


def _text(row: ForeignRow, name: str) -> str | None:
    value = row.fields.get(name)
    return value if isinstance(value, str) else None


def _sound(text: str | None) -> str | None:
    return None if text is None or text_damage(text) else text


def _number(row: ForeignRow, names: Iterable[str]) -> float | None:
    """The first column that holds a number, as a number or as text."""
    values: list[Any] = [row.fields.get(name) for name in names]
    for value in values:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if abs(number) <= _LARGEST_SCORE:
            return number
    return None


def _side(row: ForeignRow, name: str) -> int | None:
    side = _number(row, [name])
    return int(side) if side is not None and 1 <= side <= _LARGEST_SIDE else None
