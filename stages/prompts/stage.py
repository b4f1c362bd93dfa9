"""Stage `prompts`: prompt sets for each concept, by a language model or by a grammar, and captions beside them.

Writes `prompts/`; `tailored/` if there are tailored concepts; `captions/` if captions are wanted. Requests wait for the
network, not for a CPU, and share one budget: they are threads of this process, not Ray tasks. Answers are kept in the
run folder, outside the stage's output, so that no configuration pays for them again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import pyarrow as pa

from prompts.answer_store import AnswerStore
from prompts.client import ChatClient
from prompts.endpoint import Endpoint
from prompts.errors import PromptError
from prompts.grammars import WRITERS, grammar_prompts
from prompts.rate_limits import RateLimits
from prompts.schema import TAILORED, RichPrompt
from prompts.similarity import distinct_share, mean_distance
from prompts.tokens import TokenBudget
from prompts.writer import PromptWriter, SetRequest
from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.data.datasets import write_dataset
from stages.data.schemas import CAPTIONS, PROMPTS, content_id
from stages.prompts.captions import choose_captions
from stages.prompts.config import PromptsConfig
from stages.prompts.quotas import counts_of
from stages.storage import StorePath, store_path


def run(context: StageContext) -> StageResult:
    """Write the datasets."""
    settings = context.config.prompts
    sets = requested_sets(settings)
    if settings.endpoint is None:
        writer, costs = WRITERS[settings.grammar], dict[str, float]()
        written = _by_grammar(sets, settings, context)
    else:
        writer = settings.model
        written, costs = _by_model(sets, settings, context)
    rows = _write_sets(sets, written, writer, context.output)
    metrics = _diversity(sets, written) | costs
    if settings.captions:
        captions = choose_captions(context.inputs["filter"] / "samples", settings, context.config.run.seed)
        rows["captions"] = write_dataset(context.output / "captions", captions.table, CAPTIONS)
        metrics |= captions.metrics
    return StageResult(rows=rows, metrics=metrics, notes={"writer": writer})


def requested_sets(settings: PromptsConfig) -> list[SetRequest]:
    """The rich set of every concept, then the tailored sets."""
    rich = counts_of(settings.quotas, settings.prompts_per_concept)
    tailored = {TAILORED: settings.tailored_prompts}
    return [
        *(SetRequest(concept=concept, counts=rich) for concept in _different(settings.concepts)),
        *(SetRequest(concept=concept, counts=tailored) for concept in _different(settings.tailored_concepts)),
    ]


def _different(concepts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(" ".join(concept.split()) for concept in concepts))


def _by_grammar(sets: Sequence[SetRequest], settings: PromptsConfig, context: StageContext) -> list[list[RichPrompt]]:
    written = []
    for done, asked in enumerate(sets, start=1):
        try:
            prompts = grammar_prompts(
                settings.grammar, asked.concept, asked.counts, context.config.run.seed, settings.max_similarity
            )
        except ValueError as error:
            raise StageError(f"{error}; lower prompts.prompts_per_concept or set prompts.endpoint.") from error
        written.append(prompts)
        context.report.progress(done, len(sets), f"writing prompts ({WRITERS[settings.grammar]})")
    return written


def _by_model(
    sets: Sequence[SetRequest], settings: PromptsConfig, context: StageContext
) -> tuple[list[list[RichPrompt]], dict[str, float]]:
    """The prompts of every set, and what they have cost."""
    given = settings.answers_folder
    store = AnswerStore(store_path(given) if given else store_path(context.config.run.folder) / "answers")
    try:
        client = _client(settings, store)
        total = sum(sum(asked.counts.values()) for asked in sets)
        writer = PromptWriter(
            client=client,
            prompts_per_request=settings.prompts_per_request,
            max_similarity=settings.max_similarity,
            concurrency=settings.concurrency,
            progress=_Progress(client, total, settings.model, context.report),
        )
        written = writer.write(sets)
    except PromptError as error:
        kept = f"; the answers so far are kept in {store.folder}" if store.answered else ""
        raise StageError(f"{str(error).rstrip('.')}{kept}.") from error
    finally:
        if store.damaged:
            context.report.warning(f"{len(store.damaged)} damaged answers in {store.folder} were requested again")
    costs = {"requests": client.limits.sent, "tokens": client.budget.spent, "tokens_paid_now": client.budget.paid}
    return written, {**costs, "near_duplicates": float(writer.near_duplicates)}


def _client(settings: PromptsConfig, store: AnswerStore) -> ChatClient:
    assert settings.endpoint is not None
    return ChatClient(
        endpoint=Endpoint(
            base_url=settings.endpoint,
            model=settings.model,
            api_key=os.environ.get("OPENAI_API_KEY") or None,
            temperature=settings.temperature,
            answer_tokens=settings.answer_tokens,
            timeout_seconds=settings.timeout_seconds,
            retries=settings.retries,
        ),
        store=store,
        budget=TokenBudget(settings.token_budget),
        limits=RateLimits(settings.requests_per_minute, settings.tokens_per_minute),
    )


class _Progress:
    """Reports prompts and tokens; called from many threads."""

    def __init__(self, client: ChatClient, total: int, model: str, report: Reporter) -> None:
        self._client, self._total, self._model, self._report = client, total, model, report
        self._done = self._step = 0
        self._lock = threading.Lock()

    def __call__(self, added: int) -> None:
        with self._lock:
            self._done = min(self._done + added, self._total)
            self._step += 1
            spent = self._client.budget.spent
            self._report.progress(self._done, self._total, f"writing prompts ({self._model}, {spent} tokens)")
            self._report.metric("tokens", spent, self._step)


def _write_sets(
    sets: Sequence[SetRequest], written: Sequence[Sequence[RichPrompt]], writer: str, output: StorePath
) -> dict[str, int]:
    """Write `prompts/` and, if there are tailored sets, `tailored/`; returns their rows."""
    rows: dict[str, list[dict[str, str]]] = {"prompts": []}
    for asked, prompts in zip(sets, written, strict=True):
        name = "tailored" if TAILORED in asked.counts else "prompts"
        rows.setdefault(name, []).extend(_row(asked.concept, prompt, writer) for prompt in prompts)
    return {
        name: write_dataset(output / name, pa.Table.from_pylist(listed, schema=PROMPTS), PROMPTS)
        for name, listed in rows.items()
    }


def _row(concept: str, prompt: RichPrompt, writer: str) -> dict[str, str]:
    return {
        "prompt_id": content_id(concept, prompt.prompt),
        "concept": concept,
        "prompt": prompt.prompt,
        "variation": prompt.variation,
        "writer": writer,
    }


def _diversity(sets: Sequence[SetRequest], written: Sequence[Sequence[RichPrompt]]) -> dict[str, float]:
    """distinct-1, distinct-2 and the mean distance of two prompts: means over the sets."""
    texts = [
        (asked.concept, [prompt.prompt for prompt in prompts]) for asked, prompts in zip(sets, written, strict=True)
    ]
    return {
        "distinct_1": sum(distinct_share(prompts, 1) for _, prompts in texts) / len(texts),
        "distinct_2": sum(distinct_share(prompts, 2) for _, prompts in texts) / len(texts),
        "mean_distance": sum(mean_distance(prompts, concept) for concept, prompts in texts) / len(texts),
    }
