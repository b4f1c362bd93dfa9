"""Whether the stage `filter` can read the captioned pictures of `filter.pictures_folder`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipelines.doctor.findings import Finding, Setup, counted, good, problem, unknown, warning
from pipelines.doctor.hub import HubError, check_dataset_on_hub, is_offline
from stages.contract import StageError
from stages.filter.config import FilterConfig
from stages.storage import StorePath, is_remote, store_path

if TYPE_CHECKING:
    from stages.filter.foreign_rows import ForeignRow

_KEY = "filter.pictures_folder"
_ROWS = 16  # that are read


def check_pictures_folder(setup: Setup) -> Iterator[Finding]:
    """The layout of a folder, a URI or a dataset of the hub, and what its first rows have.

    Raises:
        StageError, StorageError: It cannot be read.
    """
    settings = setup.config.filter
    if settings.pictures_folder is None:
        return
    from stages.filter.hub_datasets import cached_dataset, is_hub_id

    if not is_hub_id(settings.pictures_folder):
        yield from _check_layout(store_path(settings.pictures_folder), settings)
        return
    folder = cached_dataset(settings.pictures_folder)
    if folder is None:
        yield _on_hub(settings.pictures_folder)
        return
    yield good(f"{_KEY}: {settings.pictures_folder} is in the hub's cache; what it lacks there is downloaded")
    try:
        yield from _check_layout(folder, settings)
    except StageError as error:
        yield warning(f"{str(error).rstrip('.')}; this is what the cache has, the run downloads the rest")


def _check_layout(folder: StorePath, settings: FilterConfig) -> Iterator[Finding]:
    from stages.filter.foreign_rows import Columns
    from stages.filter.layouts import find_layout

    layout = find_layout(folder, Columns(picture=settings.picture_column, caption=settings.caption_column))
    yield good(f"{_KEY}: {counted(len(layout.files), layout.kind)} in {folder}")
    if not is_remote(folder):  # whose first file may be gigabytes
        yield from _check_rows(layout.files[0], layout.read(layout.files[0], layout.files[0].name), settings)


def _check_rows(file: StorePath, rows: Iterator[ForeignRow], settings: FilterConfig) -> Iterator[Finding]:
    """Whether the first rows become samples, and whether these have the scores that the thresholds need."""
    from stages.filter.adoption import adopt_row
    from stages.filter.foreign_rows import DamagedFileError
    from stages.filter.score_columns import missing_columns

    try:
        adopted = [adopt_row(row) for row in itertools.islice(rows, _ROWS)]
    except DamagedFileError as error:
        yield warning(f"{_KEY}: {file}: {error}; its rest is rejected")
        return
    samples = [row for row in adopted if "reason" not in row]
    if adopted and not samples:
        reason, detail = adopted[0]["reason"], adopted[0]["detail"]
        yield warning(f"{_KEY}: the first {counted(len(adopted), 'row')} of {file} cannot be used ({reason}: {detail})")
    found = {name for row in samples for name, value in row.items() if value is not None}
    if samples and (sentence := missing_columns(found, settings)):
        yield problem(f"{sentence.rstrip('.')} (by the first rows of {file})")


def _on_hub(name: str) -> Finding:
    """What the hub says of a dataset that its cache lacks."""
    download = f"run `hf download --repo-type dataset {name}` where there is a network, or give the path of a folder"
    if is_offline():
        return problem(
            f"{_KEY}: HF_HUB_OFFLINE is set, and the hub's cache has nothing of the dataset {name}: {download}"
        )
    try:
        check_dataset_on_hub(name)
    except HubError as error:
        return problem(f"{_KEY}: {error.text}") if error.is_known else unknown(f"{_KEY}: {error.text}; {download}")
    return good(f"{_KEY}: the dataset {name} is on the hub, and downloaded by filter; its size is on its page")
