"""Prompt sets of a language model: what they hold, what they cost, and that nothing is paid for twice."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prompts.client import ChatClient
from prompts.errors import PromptError
from prompts.rate_limits import RateLimits
from prompts.schema import VARIATIONS, Variation
from prompts.writer import PromptWriter, SetRequest
from tests.support.llm_server import Reply, batch, completion, language_model
from tests.support.prompt_writer import SmallWriter

#: Different enough for any limit of similarity.
PLACES = ["harbour", "desert", "temple", "kitchen", "museum", "volcano", "library", "glacier", "market", "vineyard"]
THINGS = ["piano", "kettle", "bicycle", "globe", "cactus", "robot", "candle", "canoe", "lantern", "telescope"]
PAIRS = list(itertools.product(PLACES, THINGS))


def prompts_of(request: dict[str, Any]) -> list[str]:
    """Prompts as asked for, of the right concept; different from those that the request shows."""
    message = request["messages"][-1]["content"]
    asked = re.search(r'Write (\d+) prompts with "\[v\] ([^"]+)"', message)
    kind = re.search(r'Set "variation" to "(\w+)"', message)
    assert asked is not None
    assert kind is not None
    (count, concept), variation = asked.groups(), kind[1]
    start = 20 * [*map(str, VARIATIONS), "tailored"].index(variation) + message.count("\n- ")
    pairs = itertools.islice(itertools.cycle(PAIRS), start, start + int(count))
    return [f"a [v] {concept} beside a {thing} in a {place} {variation}" for place, thing in pairs]


def answered(request: dict[str, Any], tokens: int = 40) -> Reply:
    reply = completion({"content": batch(*prompts_of(request))})
    usage = {"prompt_tokens": tokens // 2, "completion_tokens": tokens - tokens // 2, "total_tokens": tokens}
    return Reply(reply.body | {"usage": usage})


COUNTS: dict[Variation, int] = {"background": 4, "subject": 3, "action": 2, "style": 1, "property": 0}


def test_quotas_are_met(tmp_path: Path) -> None:
    with language_model(lambda _, request: answered(request)) as model:
        prompts = SmallWriter(model.url, tmp_path, max_similarity=0.65, concurrency=3).write_counts("mug", COUNTS)
    assert Counter(prompt.variation for prompt in prompts) == {kind: count for kind, count in COUNTS.items() if count}
    sizes = Counter(re.search(r"Write (\d+)", r["messages"][-1]["content"])[1] for r in model.requests)  # type: ignore[index]
    assert sizes == {"3": 3, "2": 1, "1": 1}  # 4 and 3 in portions of 3


def test_near_duplicates_are_replaced_also_those_of_another_variation(tmp_path: Path) -> None:
    answers = {
        "background": [["a [v] mug in a desert", "the [v] mug in the deserts", "a [v] mug on a piano"]],
        "style": [["a photo of a [v] mug in the desert", "a [v] mug as a mosaic"], ["a [v] mug in ink"]],
    }

    def answer(_: int, request: dict[str, Any]) -> str:
        kind = re.search(r'Set "variation" to "(\w+)"', request["messages"][-1]["content"])[1]  # type: ignore[index]
        return batch(*answers[kind].pop(0))

    with language_model(answer) as model:
        writer = PromptWriter(SmallWriter(model.url, tmp_path).client, 3, 0.65)
        (prompts,) = writer.write([SetRequest(concept="mug", counts={"background": 2, "style": 2})])
    assert [prompt.prompt for prompt in prompts] == [
        "a [v] mug in a desert",
        "a [v] mug on a piano",
        "a [v] mug as a mosaic",
        "a [v] mug in ink",
    ]
    assert writer.near_duplicates == 2


def test_prompts_of_benchmarks_are_left_out_and_named(tmp_path: Path) -> None:
    with (
        language_model(lambda *_: batch("A [v] mug in the Jungle.")) as model,
        pytest.raises(PromptError, match=r"'A \[v\] mug in the Jungle' is a prompt of DreamBench, .*evaluation only"),
    ):
        SmallWriter(model.url, tmp_path).write("mug", 1)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"max_similarity": 0.65},
        {"concurrency": 4},
        {"token_budget": 10},
        {"limits": RateLimits(1, 10_000)},
        {"settings": {"timeout_seconds": 1.0}},
        {"settings": {"retries": 0}},
        {"settings": {"api_key": "sk-another-key"}},
    ],
    ids=str,
)
def test_a_repeated_or_changed_run_pays_for_nothing_twice(tmp_path: Path, change: dict[str, Any]) -> None:
    with language_model(lambda _, request: answered(request)) as model:
        before = SmallWriter(model.url, tmp_path).write_counts("mug", COUNTS)
        asked = len(model.requests)
        again = SmallWriter(model.url, tmp_path, **change)
        assert again.write_counts("mug", COUNTS) == before
        assert len(model.requests) == asked
    assert again.client.budget.paid == 0
    assert again.client.budget.spent == 40 * asked


def test_more_prompts_are_paid_for_alone_and_fewer_not_at_all(tmp_path: Path) -> None:
    with language_model(lambda _, request: answered(request)) as model:
        six = SmallWriter(model.url, tmp_path).write("mug", 6)
        assert len(model.requests) == 2
        assert SmallWriter(model.url, tmp_path).write("mug", 12)[:6] == six
        assert len(model.requests) == 4
        assert SmallWriter(model.url, tmp_path).write("mug", 4) == six[:4]
        assert len(model.requests) == 4


def test_answers_with_another_number_of_prompts_are_used_before_more_are_asked_for(tmp_path: Path) -> None:
    with language_model(lambda _, request: answered(request)) as model:
        two = SmallWriter(model.url, tmp_path).write("mug", 2)
        three = SmallWriter(model.url, tmp_path).write("mug", 3)
        assert three[:2] == two
        assert len(model.requests) == 2
        for count, prompts in ((2, two), (3, three), (5, three)):
            assert SmallWriter(model.url, tmp_path).write("mug", count)[:3] == prompts
    assert len(model.requests) == 2


def test_everything_can_be_written_again_when_the_server_is_gone(tmp_path: Path) -> None:
    with language_model(lambda _, request: answered(request)) as model:
        before = SmallWriter(model.url, tmp_path).write("mug", 6)
    assert SmallWriter(model.url, tmp_path).write("mug", 6) == before


def test_what_came_before_a_failure_is_kept(tmp_path: Path) -> None:
    with language_model(lambda number, request: 401 if number > 1 else answered(request)) as model:
        with pytest.raises(PromptError, match="answers 401"):
            SmallWriter(model.url, tmp_path).write("mug", 9)
        failed = len(model.requests)
        model.answer = lambda _, request: answered(request)
        assert len(SmallWriter(model.url, tmp_path).write("mug", 9)) == 9
    assert len(model.requests) == failed + 1


def test_useless_answers_of_an_earlier_run_do_not_end_the_next_one(tmp_path: Path) -> None:
    with language_model(lambda *_: "I am sorry.") as model:
        with pytest.raises(PromptError, match=r"'I am sorry\.'"):
            SmallWriter(model.url, tmp_path).write("mug", 3)
        model.answer = lambda _, request: answered(request)
        assert len(SmallWriter(model.url, tmp_path).write("mug", 3)) == 3


def test_the_budget_is_never_exceeded_and_counts_what_earlier_runs_have_spent(tmp_path: Path) -> None:
    used: list[int] = []

    def answer(_: int, request: dict[str, Any]) -> Reply:
        tokens = request["max_tokens"] + len(json.dumps(request, ensure_ascii=False).encode())  # as much as can be
        used.append(tokens)
        return answered(request, tokens)

    with language_model(answer) as model:
        for _ in range(3):
            with pytest.raises(PromptError, match=r"prompts\.token_budget \(20000 tokens\) has no room"):
                SmallWriter(model.url, tmp_path, token_budget=20_000, concurrency=4).write_counts(
                    "mug", dict.fromkeys(VARIATIONS, 30)
                )
        assert 14_000 < sum(used) <= 20_000
        writer = SmallWriter(model.url, tmp_path, token_budget=200_000)
        assert len(writer.write_counts("mug", dict.fromkeys(VARIATIONS, 4))) == 20
        assert writer.client.budget.spent <= sum(used)


def test_tries_without_an_answer_count_in_the_budget(tmp_path: Path) -> None:
    with language_model(lambda number, request: 500 if number < 3 else answered(request)) as model:
        writer = SmallWriter(model.url, tmp_path, settings={"retries": 3}, token_budget=50_000)
        writer.write("mug", 3)
    assert len(model.requests) == 4
    assert writer.client.budget.spent > 3 * 1000 + 40  # 500: the server may have generated something
    with language_model(lambda number, request: 429 if number < 3 else answered(request)) as model:
        writer = SmallWriter(model.url, tmp_path / "other", settings={"retries": 3}, token_budget=50_000)
        writer.write("mug", 3)
    assert writer.client.budget.spent == 40


@pytest.mark.parametrize("headers", [{"Retry-After": "0.3", "retry-after-ms": ""}, {"retry-after-ms": "300"}])
def test_the_wait_that_the_server_asks_for_is_kept(tmp_path: Path, headers: dict[str, str]) -> None:
    arrived: list[float] = []

    def answer(number: int, request: dict[str, Any]) -> Reply:
        arrived.append(time.monotonic())
        return answered(request) if number else Reply({"error": "slow down"}, 429, headers)

    with language_model(answer) as model:
        SmallWriter(model.url, tmp_path).write("mug", 3)
    assert arrived[1] - arrived[0] >= 0.3


def test_a_wait_of_hours_ends_the_run_with_the_servers_words(tmp_path: Path) -> None:
    late = Reply({"error": {"message": "daily quota is used up"}}, 429, {"Retry-After": "7200", "retry-after-ms": ""})
    with (
        language_model(lambda *_: late) as model,
        pytest.raises(PromptError, match=r"daily quota is used up; it asks to wait for 7200 s"),
    ):
        SmallWriter(model.url, tmp_path).write("mug", 3)
    assert len(model.requests) == 1


def test_requests_run_side_by_side_but_not_more_than_allowed(tmp_path: Path) -> None:
    open_now, most, lock = [0], [0], threading.Lock()

    def answer(_: int, request: dict[str, Any]) -> Reply:
        with lock:
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
        time.sleep(0.1)
        with lock:
            open_now[0] -= 1
        return answered(request)

    with language_model(answer) as model:
        SmallWriter(model.url, tmp_path, concurrency=3).write_counts("mug", dict.fromkeys(VARIATIONS, 3))
    assert most == [3]


def test_a_failure_stops_the_other_requests(tmp_path: Path) -> None:
    with language_model(lambda number, request: 401 if number > 2 else answered(request)) as model:
        writer = SmallWriter(model.url, tmp_path, concurrency=2, settings={"retries": 0})
        with pytest.raises(PromptError, match="answers 401"):
            writer.write_counts("mug", dict.fromkeys(VARIATIONS, 20))
    assert len(model.requests) < 12


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            1,
        ),
        ("Unrecognized request argument supplied: max_tokens", 1),
        ("max_tokens is too large: 100. This model supports at most 50.", 2),
        ("This model's maximum context length is 512 tokens. However, you requested 600 tokens.", 2),
    ],
)
def test_the_limit_of_an_answer_takes_the_form_that_the_server_knows(tmp_path: Path, words: str, field: int) -> None:
    def answer(_: int, request: dict[str, Any]) -> Reply:
        return Reply({"error": {"message": words}}, 400) if "max_tokens" in request else answered(request)

    with language_model(answer) as model:
        SmallWriter(model.url, tmp_path).write("mug", 6)
    assert ["max_tokens" in request for request in model.requests] == [True, False, False]
    assert ("max_completion_tokens" in model.requests[-1]) == (field == 1)


def test_with_a_budget_no_request_is_sent_without_a_limit(tmp_path: Path) -> None:
    words = "This model's maximum context length is 50 tokens."
    with (
        language_model(lambda *_: Reply({"error": {"message": words}}, 400)) as model,
        pytest.raises(PromptError, match=r"maximum context length is 50.*set prompts\.answer_tokens to fewer"),
    ):
        SmallWriter(model.url, tmp_path, token_budget=10**6).write("mug", 3)
    assert all("max_tokens" in request for request in model.requests)


def test_the_key_is_in_no_file_and_in_no_prompt(tmp_path: Path) -> None:
    key = "sk-very-secret-key"
    repeated = completion({"content": batch(f"a [v] mug with {key} written on it", "a [v] mug at sea")})
    with language_model(lambda *_: repeated) as model:
        prompts = SmallWriter(model.url, tmp_path, settings={"api_key": key}).write("mug", 2)
    assert [prompt.prompt for prompt in prompts] == ["a [v] mug with *** written on it", "a [v] mug at sea"]
    assert not any(key in path.read_text() for path in tmp_path.iterdir())


def test_the_answer_is_on_the_disk_before_the_next_request(tmp_path: Path) -> None:
    seen: list[int] = []

    def answer(_: int, request: dict[str, Any]) -> Reply:
        stored = [json.loads(path.read_text())["entry"] for path in tmp_path.glob("*.json")]
        seen.append(sum(entry["completion"] is not None for entry in stored))
        return answered(request)

    with language_model(answer) as model:
        SmallWriter(model.url, tmp_path).write("mug", 9)
    assert seen == [0, 1, 2]


def test_two_processes_that_ask_the_same_pay_once(tmp_path: Path) -> None:
    with language_model(lambda _, request: answered(request)) as model:
        writers = [SmallWriter(model.url, tmp_path) for _ in range(4)]
        written: list[Any] = []
        threads = [threading.Thread(target=lambda w=w: written.append(w.write("mug", 6))) for w in writers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(model.requests) == 2
    assert all(prompts == written[0] for prompts in written)


def test_a_client_that_was_stopped_asks_nothing(writer: Callable[..., SmallWriter]) -> None:
    client: ChatClient = writer("http://127.0.0.1:1/v1").client
    client.stopped.set()
    with pytest.raises(PromptError):
        client.ask("hello", 0)
