"""Items through functions and actors, on a real Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.contract import Reporter, StageError
from stages.ray_tools.mapping import Progress, Workers, map_on_workers, one_row_batches

BATCHES = one_row_batches({"number": number} for number in range(4))


class Squares:
    """An actor that is slow for the first number."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for number in batch["number"].to_pylist():
            time.sleep(0.3 if number == 0 else 0)
            yield pa.table({"square": [number**2 + self.offset], "process": [os.getpid()]})


def refuse(batch: pa.Table, error: type[Exception]) -> pa.Table:
    raise error(f"{batch['number'][0]} is too large")


def die_once(batch: pa.Table, mark: Path) -> pa.Table:
    if not mark.exists():
        mark.touch()
        os._exit(1)
    return batch


@pytest.mark.slow
def test_results_come_in_order_with_progress(ray_cluster: str) -> None:
    events: list[Mapping[str, Any]] = []
    results = list(
        map_on_workers(
            Squares,
            BATCHES,
            arguments={"offset": 10},
            workers=Workers(count=2, cpus=0.5),
            progress=Progress(report=Reporter(emit=events.append), total=8, note="squaring", amount=lambda table: 2),
        )
    )
    assert [result["square"].to_pylist() for result in results] == [[10], [11], [14], [19]]
    assert len({result["process"][0].as_py() for result in results}) <= 2
    assert [(event["done"], event["total"], event["note"]) for event in events] == [
        (done, 8, "squaring") for done in (2, 4, 6, 8)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("error", "known"), [(StageError, ()), (KeyError, (KeyError,)), (LookupError, (LookupError,))])
def test_an_error_of_a_worker_is_the_stages(
    error: type[Exception], known: tuple[type[Exception], ...], ray_cluster: str
) -> None:
    with pytest.raises(StageError, match="0 is too large"):
        list(map_on_workers(refuse, BATCHES[:1], arguments={"error": error}, workers=Workers(), errors=known))


@pytest.mark.slow
def test_an_unknown_error_passes(ray_cluster: str) -> None:
    with pytest.raises(Exception, match="0 is too large") as caught:
        list(
            map_on_workers(refuse, BATCHES[:1], arguments={"error": ValueError}, workers=Workers(), errors=(KeyError,))
        )
    assert not isinstance(caught.value, StageError)


def leave_out_the_last(batch: pa.Table) -> pa.Table:
    return batch.filter(pa.array([number < 3 for number in batch["number"].to_pylist()]))


@pytest.mark.slow
def test_progress_is_complete_when_a_result_has_no_rows(ray_cluster: str) -> None:
    events: list[Mapping[str, Any]] = []
    progress = Progress(report=Reporter(emit=events.append), total=4, note="")
    results = map_on_workers(leave_out_the_last, BATCHES, arguments={}, workers=Workers(), progress=progress)
    assert [result["number"].to_pylist() for result in results] == [[0], [1], [2]]
    assert [event["done"] for event in events] == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_work_of_a_dead_worker_is_done_again(ray_cluster: str, tmp_path: Path) -> None:
    arguments = {"mark": tmp_path / "mark"}
    results = list(map_on_workers(die_once, BATCHES, arguments=arguments, workers=Workers(count=1)))
    assert [result["number"].to_pylist() for result in results] == [[0], [1], [2], [3]]


def test_no_work_needs_no_ray() -> None:
    assert list(map_on_workers(refuse, [], arguments={}, workers=Workers())) == []
