"""What rank 0 and the driver say to each other through files, on a disk and in a bucket."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stages.storage import StorePath, store_path, write_whole
from stages.training import record
from stages.training.record import RecordReader, open_record, watch


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorePath:
    monkeypatch.setattr(record, "STORE_SECONDS", 0.05)
    return tmp_path if request.param == "disk" else store_path(f"{request.getfixturevalue('bucket')}/train")


def line(step: int, **values: float) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def steps_of(reader: RecordReader) -> list[int]:
    return [found["step"] for found in reader.read()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([""], [[]]),
        (["\n"], [[]]),
        ([line(1)], [[1]]),
        ([line(1) + line(2)], [[1, 2]]),
        ([line(1), line(2)], [[1], [2]]),
        ([line(1)[:5], line(1)[5:]], [[], [1]]),
        ([line(1) + line(2)[:9], line(2)[9:] + line(3)], [[1], [2, 3]]),
        (["\n" + line(1), "\n" + line(2)], [[1], [2]]),
        ([line(1) + line(2)[:9], "\n" + line(2)], [[1], [2]]),
        ([line(3), "\n" + line(2) + line(3) + line(4)], [[3], [4]]),
        ([line(1) + line(1)], [[1]]),
        ([line(5), ""], [[5], []]),
    ],
    ids=[
        *("nothing", "a blank line", "a line", "two lines", "a line later", "the rest of a line later"),
        *(
            "a torn line and more later",
            "after a restart",
            "torn by a kill",
            "repeated steps",
            "one step twice",
            "idle",
        ),
    ],
)
def test_a_reader_returns_each_step_once(tmp_path: Path, parts: list[str], expected: list[list[int]]) -> None:
    reader, text, found = RecordReader(tmp_path / "a.jsonl"), "", []
    for part in parts:
        text += part
        write_whole(tmp_path / "a.jsonl", text)
        found.append(steps_of(reader))
    assert found == expected


def test_a_reader_of_a_file_that_is_not_there_yet(folder: StorePath) -> None:
    reader = RecordReader(folder / "a.jsonl")
    assert steps_of(reader) == []
    write_whole(folder / "a.jsonl", line(1))
    assert steps_of(reader) == [1]


def test_lines_can_be_read_while_they_are_written_and_after_a_kill(folder: StorePath) -> None:
    reader, found = RecordReader(folder / "a.jsonl"), []

    def seen(step: int) -> bool:
        found.extend(steps_of(reader))
        return step in found

    with open_record(folder / "a.jsonl") as lines:
        lines.write(line(1))
        wait_until(lambda: seen(1))
        lines.write(line(2))
        lines.flush()
        assert seen(2)
    with suppress(KeyError), open_record(folder / "a.jsonl") as lines:
        lines.write(line(3))
        raise KeyError
    with open_record(folder / "a.jsonl") as lines:
        lines.write(line(3))  # repeated
        lines.write(line(4))
    assert seen(4)
    assert found == [1, 2, 3, 4]
    assert steps_of(RecordReader(folder / "a.jsonl")) == [1, 2, 3, 4]


def test_a_request_is_seen(folder: StorePath) -> None:
    with watch(folder / "stop") as asked:
        assert not asked()
        write_whole(folder / "stop", b"")
        wait_until(asked)


def test_a_store_that_is_away_stops_no_training_until_lines_must_be_there(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "STORE_SECONDS", 0.05)
    folder = store_path(f"{bucket}/train")
    failures: list[Any] = []

    def fail(*arguments: Any) -> None:
        failures.append(arguments)
        raise ConnectionError("away")

    with open_record(folder / "a.jsonl") as lines, pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "write_whole", fail)
        lines.write(line(1))
        wait_until(lambda: len(failures) >= 2)
        with pytest.raises(ConnectionError):
            lines.flush()
    assert steps_of(RecordReader(folder / "a.jsonl")) == [1]


def test_a_worker_that_was_cut_off_may_have_written_another_state_of_the_file(tmp_path: Path) -> None:
    """What is read then begins in the middle of a line."""
    file, reader = tmp_path / "a.jsonl", RecordReader(tmp_path / "a.jsonl")
    file.write_text("".join(f'{{"step": {step}, "loss": 1.5}}\n' for step in range(1, 6)))
    assert steps_of(reader) == [1, 2, 3, 4, 5]
    file.write_text("".join(f'{{"step": {step}, "loss": 0.123456}}\n' for step in range(1, 9)))
    assert steps_of(reader) == [6, 7, 8]
