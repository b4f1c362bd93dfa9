"""Stage `prompts`: context-rich prompts for each concept, by a language model or by the grammar.

With `prompts.endpoint`, Ray tasks send the requests, `prompts.concurrency` concepts at a time. `context.scratch` keeps
the prompts of finished concepts, so that an interrupted stage does not pay for them again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from prompts.client import Endpoint, PromptWriter
from prompts.errors import PromptError
from prompts.grammar import WRITER, grammar_prompts
from prompts.schema import RichPrompt, RichPrompts
from stages.contract import StageContext, StageError, StageResult
from stages.data.datasets import write_dataset
from stages.data.schemas import PROMPTS, content_id
from stages.prompts.config import PromptsConfig
from stages.ray_tools.mapping import Workers, map_on_workers, one_row_batches


def run(context: StageContext) -> StageResult:
    """Write the dataset `prompts/`."""
    settings = context.config.prompts
    concepts = list(dict.fromkeys(concept.strip() for concept in settings.concepts))
    if settings.endpoint is None:
        writer, written = WRITER, _by_grammar(concepts, settings, context.config.run.seed)
    else:
        endpoint = _endpoint(settings.endpoint, settings)
        writer, written = settings.model, _by_model(concepts, endpoint, settings, context.scratch)
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


def _endpoint(base_url: str, settings: PromptsConfig) -> Endpoint:
    try:
        return Endpoint(
            base_url=base_url,
            model=settings.model,
            api_key=os.environ.get("OPENAI_API_KEY") or None,
            temperature=settings.temperature,
            prompts_per_request=settings.prompts_per_request,
            timeout_seconds=settings.timeout_seconds,
            retries=settings.retries,
        )
    except PromptError as error:
        raise StageError(str(error)) from error


def _by_model(
    concepts: list[str], endpoint: Endpoint, settings: PromptsConfig, scratch: Path
) -> Iterator[tuple[str, list[RichPrompt]]]:
    """Each concept with its prompts, in the order of completion."""
    written = map_on_workers(
        write_prompts,
        one_row_batches({"concept": concept} for concept in concepts),
        arguments={"endpoint": endpoint, "count": settings.prompts_per_concept, "folder": scratch.resolve()},
        workers=Workers(count=max(1, settings.concurrency)),
        errors=(PromptError,),
    )
    for concept, table in zip(concepts, written, strict=True):
        yield concept, [RichPrompt(**prompt) for prompt in table.to_pylist()]


def write_prompts(batch: pa.Table, endpoint: Endpoint, count: int, folder: Path) -> pa.Table:
    """The prompts of the concept in the batch's only row."""
    (concept,) = batch["concept"].to_pylist()
    return pa.Table.from_pylist(write_concept(endpoint, concept, count, folder / f"{content_id(concept)}.json"))


def write_concept(endpoint: Endpoint, concept: str, count: int, kept: Path) -> list[dict[str, str]]:
    """Read the prompts of a concept from the file `kept`; if it does not exist, request them and write it."""
    if not kept.is_file():
        prompts = RichPrompts(prompts=PromptWriter(endpoint).write(concept, count))
        partial = kept.with_suffix(".part")
        partial.write_text(prompts.model_dump_json())
        partial.rename(kept)
    return list(json.loads(kept.read_text())["prompts"])
