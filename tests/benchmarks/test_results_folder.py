"""A folder of results has one budget, and processes share what is missing in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.benchmarks.support.results_folder import claim, claimed


@dataclass(frozen=True)
class Budget:
    subjects: int
    seed: int


def test_a_folder_has_results_of_one_budget(tmp_path: Path) -> None:
    budget = Budget(subjects=2, seed=0)
    for _ in range(2):
        claim(tmp_path, budget)
    with pytest.raises(SystemExit, match="another budget"):
        claim(tmp_path, replace(budget, seed=1))


def test_a_file_is_no_folder_of_results(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises(SystemExit, match="is no folder"):
            claim(path, Budget(subjects=2, seed=0))


def test_a_result_is_claimed_once(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with claimed(lock) as first, claimed(lock) as second:
        assert (first, second) == (True, False)
    with claimed(lock) as again:
        assert again
