"""What is kept on disk of questions and answers, and by what it is found again."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prompts.answer_store import AnswerStore, Question
from prompts.errors import StoppedError

QUESTION = Question(
    endpoint="http://host/v1",
    model="m",
    messages=({"role": "user", "content": "hello"},),
    temperature=1.0,
    answer_tokens=100,
)
COMPLETION = {"choices": [{"message": {"content": "hi"}}], "usage": {"total_tokens": 7}}
NEVER = threading.Event()


def answer(folder: Path, question: Question = QUESTION, **store: Any) -> None:
    with AnswerStore(folder, **store).entry(question, NEVER) as entry:
        entry.begin(50)
        assert entry.answer(COMPLETION, 50) == 7


def kept(folder: Path, question: Question = QUESTION) -> tuple[dict[str, Any] | None, int]:
    with AnswerStore(folder).entry(question, NEVER) as entry:
        return entry.completion, entry.cost


def test_an_answer_is_found_by_what_was_asked(tmp_path: Path) -> None:
    assert kept(tmp_path) == (None, 0)
    answer(tmp_path)
    assert kept(tmp_path) == (COMPLETION, 7)
    assert kept(tmp_path, replace(QUESTION, endpoint="HTTP://Host/v1/")) == (COMPLETION, 7)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": "http://other/v1"},
        {"model": "n"},
        {"messages": ({"role": "user", "content": "bye"},)},
        {"temperature": 0.5},
        {"answer_tokens": 99},
        {"turn": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_question_has_no_answer(tmp_path: Path, changes: dict[str, Any]) -> None:
    answer(tmp_path)
    assert kept(tmp_path, replace(QUESTION, **changes)) == (None, 0)


def test_a_request_that_was_cut_off_leaves_what_it_may_have_cost(tmp_path: Path) -> None:
    for _ in range(2):  # two runs that were killed
        with AnswerStore(tmp_path).entry(QUESTION, NEVER) as entry:
            entry.begin(50)
    with AnswerStore(tmp_path).entry(QUESTION, NEVER) as entry:
        entry.begin(50)
        entry.fail(reserved=50, cost=0)  # the server has refused it
    assert kept(tmp_path) == (None, 100)
    answer(tmp_path)
    assert kept(tmp_path) == (COMPLETION, 107)


def test_a_request_that_cost_nothing_leaves_nothing(tmp_path: Path) -> None:
    with AnswerStore(tmp_path).entry(QUESTION, NEVER) as entry:
        entry.begin(50)
        entry.fail(reserved=50, cost=0)
    assert not list(tmp_path.iterdir())


def test_an_answer_that_does_not_say_what_it_cost_counts_with_all_that_was_reserved(tmp_path: Path) -> None:
    with AnswerStore(tmp_path).entry(QUESTION, NEVER) as entry:
        entry.begin(50)
        assert entry.answer({"choices": []}, 50) == 50
    assert kept(tmp_path) == ({"choices": []}, 50)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: text.replace("hi", "ho"),
        lambda text: text.replace("hello", "bye"),
        lambda text: "[]",
        lambda text: "\x00" * len(text),
        lambda text: json.dumps({"entry": {}, "sha256": "0"}),
        lambda text: '{"entry": ' * 2000,
    ],
    ids=["empty", "cut off", "another answer", "another question", "a list", "zeros", "another form", "nested"],
)
def test_a_damaged_entry_is_asked_for_again(tmp_path: Path, damage: Any) -> None:
    answer(tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text(damage(file.read_text()))
    store = AnswerStore(tmp_path)
    with store.entry(QUESTION, NEVER) as entry:
        assert entry.completion is None
        entry.begin(50)
        entry.answer(COMPLETION, 50)
    assert store.damaged == [file.name]
    assert kept(tmp_path) == (COMPLETION, 7)


def test_the_key_is_not_written(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, secret='sk-"secret"')
    with store.entry(QUESTION, NEVER) as entry:
        entry.begin(1)
        entry.answer({"choices": ['your key is sk-"secret"']}, 1)
        assert entry.completion == {"choices": ["your key is ***"]}
    assert "secret" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_of_those_who_ask_the_same_at_once_one_asks_and_the_others_get_its_answer(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask() -> None:  # with a store of its own, as another process
        with AnswerStore(tmp_path).entry(QUESTION, NEVER) as entry:
            if entry.completion is None:
                asked.append(1)
                entry.begin(1)
                NEVER.wait(0.05)
                entry.answer(COMPLETION, 1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [1]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_who_waits_gives_up_when_it_is_stopped(tmp_path: Path) -> None:
    stopped = threading.Event()
    stopped.set()
    with (
        AnswerStore(tmp_path).entry(QUESTION, NEVER),
        pytest.raises(StoppedError),
        AnswerStore(tmp_path).entry(QUESTION, stopped),
    ):
        pass


def test_a_lock_file_that_a_killed_process_has_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f"{QUESTION.key}.lock").touch()
    answer(tmp_path)
    assert os.listdir(tmp_path) == [f"{QUESTION.key}.json"]
