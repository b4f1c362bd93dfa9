"""Hostile captioned pictures in the filter: no row is lost, each has its outcome, and memory is bounded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from stages.contract import StageError
from stages.data import datasets
from stages.data.datasets import dataset_files, dataset_rows, read_dataset, row_counts
from stages.data.schemas import REJECTED, SAMPLES
from stages.filter import stage as filter_stage
from stages.filter.adoption import adopt_file
from stages.filter.config import FilterConfig
from stages.filter.copying import copy_group
from stages.filter.layouts import find_layout
from stages.filter.stage import check_sum, duplicates_by_group
from stages.filter.verdicts import group_files, inspect
from tests.support.contexts import make_context
from tests.support.hostile_samples import SETTINGS, hostile_samples

pytestmark = pytest.mark.slow


def filter_here(source: Path, folder: Path) -> Counter[str]:
    """Run the stage's tasks in this process; returns the number of samples by reason ("" for those kept)."""
    settings, layout = FilterConfig(**SETTINGS), find_layout(source)
    for number in range(len(layout.files)):
        adopt_file(layout, number, source, folder / "adopted")
    files = dataset_files(folder / "adopted" / "samples")
    groups = group_files(files, row_counts(files), 400)
    (folder / "verdicts").mkdir()
    for group in groups:
        tallies = list(inspect(pa.table({"group": [vars(group)]}), folder / "verdicts", settings))
        assert sum(table["rows"][0].as_py() for table in tallies) == group.rows
    duplicates = duplicates_by_group(groups, folder / "verdicts", folder / "colours.bin", settings.drop_duplicates)
    found = Counter[str]()
    for group, late in zip(groups, duplicates, strict=True):
        outcome = copy_group(group, folder / "verdicts", late, folder / "output", settings)
        found += outcome.reasons + Counter({"": outcome.kept})
    return found


def test_three_hundred_hostile_rows_have_their_outcomes(tmp_path: Path) -> None:
    expected = hostile_samples(tmp_path / "source", 300)
    found = filter_here(tmp_path / "source", tmp_path)
    refused = read_dataset(tmp_path / "adopted" / "rejected", REJECTED)["reason"].to_pylist()
    assert found + Counter(refused) == expected
    kept = read_dataset(tmp_path / "output" / "samples", SAMPLES)
    assert kept.num_rows == expected[""] == len(set(kept["sample_id"].to_pylist()))
    assert dataset_rows(tmp_path / "output" / "rejected") + len(refused) + kept.num_rows == 300


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of Arrow's memory, which holds the pictures."""
    monkeypatch.setattr(datasets, "_WAITING_BYTES", 1_000_000)
    peaks = []
    for count in (500, 2000):
        hostile_samples(tmp_path / f"source{count}", count)
        before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        try:
            (tmp_path / str(count)).mkdir()
            filter_here(tmp_path / f"source{count}", tmp_path / str(count))
        finally:
            pa.set_memory_pool(before)
        peaks.append(pool.max_memory())
    assert peaks[1] < 2 * peaks[0]


def test_rows_that_do_not_add_up_are_refused() -> None:
    check_sum(10, 7, 3)
    with pytest.raises(StageError, match="10 read, but 7 are kept and 2 rejected"):
        check_sum(10, 7, 2)


def test_of_ten_thousand_hostile_rows_none_is_lost(tmp_path: Path, ray_cluster: str) -> None:
    expected = hostile_samples(tmp_path / "source", 10_000)
    context = make_context(tmp_path, filter=SETTINGS | {"pictures_folder": str(tmp_path / "source")})
    result = filter_stage.run(context)
    rejected = Counter({key.removeprefix("rejected_"): int(count) for key, count in result.metrics.items()})
    assert rejected + Counter({"": result.rows["samples"]}) == expected
    assert result.rows["samples"] + result.rows["rejected"] == 10_000
