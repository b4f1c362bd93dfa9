"""Stage `prompts`: context-rich prompts for each concept, by a language model or by the grammar.

With `prompts.endpoint` set, Ray tasks ask it, `prompts.concurrency` concepts at a time. What has been written for a
concept is kept in `context.scratch`: an interrupted stage does not pay for it twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import ray

from prompts.client import Endpoint, PromptError, PromptWriter
from prompts.grammar import WRITER, grammar_prompts
from prompts.schema import RichPrompt, RichPrompts
from stages.contract import StageContext, StageError, StageResult
from stages.data.datasets import write_dataset
from stages.data.schemas import PROMPTS, content_id
from stages.prompts.config import PromptsConfig
from stages.ray_tools.tasks import worker_errors_as_stage_errors


def run(context: StageContext) -> StageResult:
    """Write `prompts/`."""
    settings = context.config.prompts
    concepts = list(dict.fromkeys(concept.strip() for concept in settings.concepts))
    if settings.endpoint is None:
        writer, written = WRITER, _by_grammar(concepts, settings, context.config.run.seed)
    else:
        writer, written = settings.model, _by_model(concepts, settings, context.scratch)
    rows = []
    for done, (concept, prompts) in enumerate(written, start=1):
        rows += [_row(concept, prompt, writer) for prompt in prompts]
        context.report.progress(done, len(concepts), f"writing prompts ({writer})")
    table = pa.Table.from_pylist(rows, schema=PROMPTS)
    return StageResult(
        rows={"prompts": write_dataset(context.output / "prompts", table, PROMPTS)}, notes={"writer": writer}
    )


def _row(concept: str, prompt: RichPrompt, writer: str) -> dict[str, str]:
    return {
        "prompt_id": content_id(concept, prompt.prompt),
        "concept": concept,
        "prompt": prompt.prompt,
        "variation": prompt.variation,
        "writer": writer,
    }


def _by_grammar(concepts: list[str], settings: PromptsConfig, seed: int) -> Iterator[tuple[str, list[RichPrompt]]]:
    for concept in concepts:
        try:
            yield concept, grammar_prompts(concept, settings.prompts_per_concept, seed)
        except ValueError as error:
            raise StageError(f"{error}; lower prompts.prompts_per_concept or set prompts.endpoint.") from error


def _by_model(concepts: list[str], settings: PromptsConfig, scratch: Path) -> Iterator[tuple[str, list[RichPrompt]]]:
    """Each concept with its prompts, in the order in which they are finished."""
    endpoint = Endpoint(
        base_url=settings.endpoint or "",
        model=settings.model,
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        temperature=settings.temperature,
        prompts_per_request=settings.prompts_per_request,
        timeout_seconds=settings.timeout_seconds,
        retries=settings.retries,
    )
    write = ray.remote(max_retries=0)(write_concept)
    waiting = list(concepts)
    running: dict[ray.ObjectRef, str] = {}
    while waiting or running:
        while waiting and len(running) < max(1, settings.concurrency):
            concept = waiting.pop(0)
            kept = scratch.resolve() / f"{content_id(concept)}.json"
            running[write.remote(endpoint, concept, settings.prompts_per_concept, kept)] = concept
        (finished,), _ = ray.wait(list(running), num_returns=1)
        concept = running.pop(finished)
        with worker_errors_as_stage_errors(PromptError):
            prompts = ray.get(finished)
        yield concept, [RichPrompt(**prompt) for prompt in prompts]


def write_concept(endpoint: Endpoint, concept: str, count: int, kept: Path) -> list[dict[str, str]]:
    """The prompts of one concept; from the file `kept` when it is there, else asked for and kept there."""
    if not kept.is_file():
        prompts = RichPrompts(prompts=PromptWriter(endpoint).write(concept, count))
        half_written = kept.with_suffix(".part")
        half_written.write_text(prompts.model_dump_json())
        half_written.rename(kept)
    return list(json.loads(kept.read_text())["prompts"])
