"""Prompt sets from a language model: every prompt is checked, near-duplicates are dropped, missing ones are requested.

The prompts of one variation come from a chain of requests. What a request says depends on the answers before it, and on
nothing that is decided about them later. So a run with other quotas or limits of similarity finds the answers of
earlier runs in the store, and uses them before it asks for more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from prompts.answers import read_answer
from prompts.client import ChatClient
from prompts.completions import text_of, why_empty
from prompts.errors import PromptError
from prompts.evaluation_prompts import EvaluationPromptFinder
from prompts.schema import RichPrompt, Variation, fault_of, normalize
from prompts.similarity import DistinctPrompts
from prompts.templates import user_message

MAX_USELESS_ANSWERS = 5  # in a row, without a new prompt; then the writer fails
SHOWN_PROMPTS = 20  # existing prompts in a request, so that the model does not repeat them
MAX_KEPT_NUMBER = 100  # answers with up to this many prompts are looked for in the store
NEAR_DUPLICATE = "too similar to another prompt"


@dataclass
class Chain:
    """The requests for one variation of a concept, one after another.

    Attributes:
        prompts_per_request: Prompts that each asks for; the same in all.
        faults: Why prompts and answers were not usable, counted.
    """

    client: ChatClient
    concept: str
    variation: Variation
    prompts_per_request: int
    finder: EvaluationPromptFinder
    faults: Counter[str] = field(default_factory=Counter, init=False)
    requests: int = field(default=0, init=False)
    _read: dict[str, str] = field(default_factory=dict, init=False)  # all prompts of the answers so far
    _turns: Counter[str] = field(default_factory=Counter, init=False)  # of each message

    def read_kept(self) -> list[str]:
        """The usable prompts of all answers that the store has."""
        usable: list[str] = []
        while (kept := self._kept_answer()) is not None:
            usable += self._read_answer(*kept)
        return usable

    def advance(self) -> tuple[list[str], bool]:
        """Ask once more; returns the usable prompts of the answer that are new, and whether it was requested now."""
        message, is_live = self._message(self.prompts_per_request), False
        kept = self._kept_answer()
        if kept is None:
            completion, is_live = self.client.ask(message, self._turns[message])
            kept = message, completion
        return self._read_answer(*kept), is_live

    def _kept_answer(self) -> tuple[str, dict[str, Any]] | None:
        """A message that the store has an answer to: with this chain's number of prompts, or else with another one."""
        for number in (self.prompts_per_request, *range(1, MAX_KEPT_NUMBER + 1)):
            message = self._message(number)
            completion = self.client.kept_answer(message, self._turns[message])
            if completion is not None:
                return message, completion
        return None

    def _message(self, number: int) -> str:
        shown = list(self._read.values())[-SHOWN_PROMPTS:]
        return user_message(self.concept, self.variation, number, shown)

    def _read_answer(self, message: str, completion: Mapping[str, Any]) -> list[str]:
        self._turns[message] += 1
        self.requests += 1
        text = text_of(completion)
        prompts = read_answer(text, self.variation)
        if not prompts:
            self.faults[self.client.redacted(why_empty(completion, text))] += 1
            self.client.avoid_structured_output()
        return self._usable(prompts)

    def _usable(self, prompts: list[RichPrompt]) -> list[str]:
        usable = []
        for prompt in (normalize(item.prompt) for item in prompts):
            known = prompt.casefold() in self._read
            self._read.setdefault(prompt.casefold(), prompt)
            fault = self._fault_of(prompt) or ("repeated" if known else None)
            if fault is None:
                usable.append(prompt)
            else:
                self.faults[fault] += 1
        return usable

    def _fault_of(self, prompt: str) -> str | None:
        if (benchmark := self.finder.benchmark_of(prompt)) is not None:
            return f"{prompt!r} is a prompt of {benchmark}, which serves evaluation only"
        return fault_of(prompt, self.concept)


@dataclass(frozen=True, kw_only=True)
class SetRequest:
    """A set of prompts for a concept: how many of each variation."""

    concept: str
    counts: Mapping[Variation, int]


@dataclass
class VariationWriter:
    """Writes the prompts of one variation of a concept.

    Attributes:
        count: Prompts that are wanted.
        progress: Called with the number of prompts that an answer has added.
        near_duplicates: Prompts that the last `fill` has left out.
    """

    chain: Chain
    count: int
    progress: Callable[[int], None]
    near_duplicates: int = field(default=0, init=False)
    _usable: list[str] = field(default_factory=list, init=False)

    def read_kept(self) -> None:
        """Read the answers that the store has."""
        self._usable += self.chain.read_kept()

    def fill(self, distinct: DistinctPrompts) -> list[str]:
        """`count` prompts that `distinct` takes, the first ones of the answers.

        Raises:
            PromptError: The endpoint fails, or does not write enough usable prompts.
        """
        taken: list[str] = []
        seen = useless = self.near_duplicates = 0
        while len(taken) < self.count:
            is_live = False
            if seen == len(self._usable):
                fresh, is_live = self.chain.advance()
                self._usable += fresh
            added = self._take(self._usable[seen:], distinct, taken)
            seen = len(self._usable)
            self.progress(added)
            useless = 0 if added else useless + is_live
            if useless == MAX_USELESS_ANSWERS:
                raise PromptError(self._shortage(len(taken)))
        return taken

    def _take(self, prompts: Sequence[str], distinct: DistinctPrompts, taken: list[str]) -> int:
        before = len(taken)
        for prompt in prompts:
            if len(taken) == self.count:
                break
            if distinct.add(prompt):
                taken.append(prompt)
            else:
                self.near_duplicates += 1
                self.chain.faults[NEAR_DUPLICATE] += 1
        return len(taken) - before

    def _shortage(self, found: int) -> str:
        chain, endpoint = self.chain, self.chain.client.endpoint
        fault, times = chain.faults.most_common(1)[0]
        return (
            f"{endpoint.model} at {endpoint.base_url} wrote only {found} of {self.count} usable prompts for "
            f"{chain.concept!r} ({chain.variation}) in {chain.requests} requests; most frequent error: {fault} "
            f"({times} times)."
        )


@dataclass
class PromptWriter:
    """Writes prompt sets with one endpoint.

    Attributes:
        prompts_per_request: At most; fewer where fewer are wanted.
        max_similarity: More similar prompts of one set are near-duplicates.
        concurrency: Requests at once.
        progress: Called, from several threads, with the number of prompts that an answer has added.
        near_duplicates: Prompts that were left out.
    """

    client: ChatClient
    prompts_per_request: int = 20
    max_similarity: float = 0.65
    concurrency: int = 1
    progress: Callable[[int], None] = lambda added: None
    near_duplicates: int = field(default=0, init=False)

    def write(self, sets: Sequence[SetRequest]) -> list[list[RichPrompt]]:
        """The prompts of each set.

        First all answers of earlier runs are read, so that the budget knows what they have cost. Then every variation
        is written for itself, many at once. Then the variations of a set are put together, and what was too similar to
        a prompt of another one is replaced.

        Raises:
            PromptError: The endpoint fails, or does not write enough usable prompts, or the budget is spent. Answers
                that have come are in the client's store.
        """
        plans = [(asked.concept, self._writers(asked)) for asked in sets]
        for _, writers in plans:
            for writer in writers:
                writer.read_kept()
        pool = ThreadPoolExecutor(max_workers=self.concurrency)
        try:
            alone = [
                pool.submit(writer.fill, self._distinct(concept)) for concept, writers in plans for writer in writers
            ]
            _wait_for_all(alone)
            together = [pool.submit(self._put_together, concept, writers) for concept, writers in plans]
            _wait_for_all(together)
            self.near_duplicates = sum(writer.near_duplicates for _, writers in plans for writer in writers)
            return [future.result() for future in together]
        except BaseException:
            self.client.stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _writers(self, asked: SetRequest) -> list[VariationWriter]:
        finder = EvaluationPromptFinder([asked.concept])
        return [
            VariationWriter(
                Chain(self.client, asked.concept, variation, min(count, self.prompts_per_request), finder),
                count,
                self.progress,
            )
            for variation, count in asked.counts.items()
            if count
        ]

    def _distinct(self, concept: str) -> DistinctPrompts:
        return DistinctPrompts(concept, self.max_similarity)

    def _put_together(self, concept: str, writers: Sequence[VariationWriter]) -> list[RichPrompt]:
        distinct = self._distinct(concept)
        return [
            RichPrompt(prompt=prompt, variation=writer.chain.variation)
            for writer in writers
            for prompt in writer.fill(distinct)
        ]


def _wait_for_all(futures: Sequence[Future[Any]]) -> None:
    """Wait until all are done; raise the first error at once."""
    for future in as_completed(futures):
        future.result()
