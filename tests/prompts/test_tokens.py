"""The budget of tokens is never exceeded, whatever the order of requests."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest

from prompts.errors import PromptError
from prompts.tokens import TokenBudget, most_tokens, used_tokens


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, 12),
        ({"prompt_tokens": 5, "completion_tokens": 7}, 12),
        ({"total_tokens": 12}, 12),
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 3}, 12),
        ({"prompt_tokens": 5}, None),
        ({"total_tokens": None}, None),
        ({"total_tokens": -4}, None),
        ({"total_tokens": True}, None),
        ({"total_tokens": "12"}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_what_a_completion_says_it_cost(usage: Any, tokens: int | None) -> None:
    assert used_tokens({"usage": usage}) == tokens


def test_the_most_that_a_request_may_cost_is_above_its_bytes_and_its_answer() -> None:
    content = "海辺 \N{GRINNING FACE} " * 50
    request = {"model": "m", "messages": [{"role": "user", "content": content}]}
    assert most_tokens(request, 100) > len(content.encode()) + 100


def test_a_request_that_may_exceed_the_budget_is_refused() -> None:
    budget = TokenBudget(100)
    budget.reserve(60)
    budget.settle(60, 50)
    for _ in range(2):
        budget.count_kept("a question", 20)
    with pytest.raises(PromptError, match=r"prompts\.token_budget \(100 tokens\).*70 are spent.*may take 31.*raise"):
        budget.reserve(31)
    budget.reserve(30)
    assert (budget.spent, budget.paid) == (70, 50)


def test_a_request_waits_for_what_others_leave_of_their_reservations() -> None:
    budget = TokenBudget(100)
    budget.reserve(60)
    threading.Timer(0.05, budget.settle, (60, 10)).start()
    budget.reserve(60)
    assert budget.spent == 10


def test_many_threads_never_exceed_the_budget() -> None:
    budget = TokenBudget(2000)
    refused: list[str] = []

    def spend(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(500):
                most = draw.randint(1, 90)
                budget.reserve(most)
                time.sleep(0.0002)
                budget.settle(most, draw.randint(0, most))
                assert budget.spent <= 2000
        except PromptError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=spend, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 8
    assert 1900 < budget.spent <= 2000
