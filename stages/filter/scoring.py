"""Scores that the metadata lacks and a threshold needs, computed by actors.

The similarity is CLIP's, the aesthetic score that of LAION's head, the safety score the margin of Stable Diffusion's
safety checker (`model/scoring/safety.py`): 0.5 is its threshold, as of LAION's own score, which comes from a Keras
model. The watermark score is LAION's alone. Only samples that all other rules let pass are looked at.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stages.contract import Reporter, StageError
from stages.data.pictures import decode
from stages.filter.candidate import Candidate
from stages.filter.config import FilterConfig, ScoringConfig
from stages.filter.rules import SCORE_RULES, computed_scores, score_of
from stages.filter.verdicts import VERDICTS, FileGroup, in_batches, read_rows, tally
from stages.ray_tools.tasks import worker_errors_as_stage_errors

MICRO = "micro"


def compute_scores(groups: list[FileGroup], folder: Path, settings: FilterConfig, report: Reporter) -> None:
    """Rewrite the verdicts of `groups`, those with samples that wait for a score."""
    models = settings.scoring
    total = sum(group.rows for group in groups)
    scored = ray.data.from_items(
        [{"group": vars(group)} for group in groups], override_num_blocks=len(groups)
    ).map_batches(
        Scorer,
        fn_constructor_kwargs={"folder": folder, "settings": settings},
        batch_format="pyarrow",
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(models.actors, len(groups))),
        num_cpus=0.5,
        num_gpus=models.gpus_per_actor or None,
    )
    done = 0
    with worker_errors_as_stage_errors(StageError):
        for batch in scored.iter_batches(batch_format="pyarrow", batch_size=None):
            done += sum(batch["rows"].to_pylist())
            report.progress(done, total, "computing scores that the metadata lacks")


class Scorer:
    """An actor that holds the models."""

    def __init__(self, folder: Path, settings: FilterConfig) -> None:
        self.folder = folder
        self.settings = settings
        self.scores = computed_scores(settings)

    @cached_property
    def models(self) -> ScoreModels:
        """Loaded for the first batch: of an actor that fails before, Ray keeps the text of the error only."""
        return ScoreModels(self.settings.scoring, self.scores)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Rewrite the verdicts of the file groups in the column `group`."""
        for group in batch["group"].to_pylist():
            place = FileGroup(**group).verdicts(self.folder)
            verdicts = pq.read_table(place).to_pylist()
            rows = itertools.chain.from_iterable(read_rows(group["files"]))
            pending = ((row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict["is_pending"])
            for some in in_batches(pending, self.settings.scoring.batch_size):
                found = self.score([row for row, _ in some])
                for (row, verdict), scores in zip(some, found, strict=True):
                    verdict |= scores | threshold(row, scores, self.settings)
            unfinished = place.with_suffix(f".{os.getpid()}")
            pq.write_table(pa.Table.from_pylist(verdicts, schema=VERDICTS), unfinished)
            unfinished.replace(place)
            yield tally(group["number"], len(verdicts), sum(verdict["is_pending"] for verdict in verdicts))

    def score(self, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        """The scores that each row lacks."""
        found = self.models(rows)
        missing = [[name for name in sorted(self.scores) if score_of(Candidate(row), name) is None] for row in rows]
        return [{name: found[name][place] for name in names} for place, names in enumerate(missing)]


def threshold(row: Mapping[str, Any], scores: Mapping[str, float], settings: FilterConfig) -> dict[str, Any]:
    """Reason and detail when a computed score lies on the wrong side; nothing otherwise."""
    candidate = Candidate({**row, **scores})
    for rule in SCORE_RULES:
        if rule.score in scores and (detail := rule.test(candidate, rule.limit(settings))) is not None:
            return {"reason": rule.name, "detail": f"{detail}, computed"}
    return {}


class ScoreModels:
    """The models behind the scores, loaded once."""

    def __init__(self, settings: ScoringConfig, scores: set[str]) -> None:
        import torch

        from model.scoring.metrics import ClipScorer

        self.device = torch.device("cuda" if settings.gpus_per_actor else "cpu")
        self.scores = scores
        names = {"similarity": settings.similarity_clip, "aesthetic": settings.aesthetic_clip}
        names = {score: name for score, name in names.items() if score in scores}
        loaded: dict[str, ClipScorer] = {}
        for name in set(names.values()):
            assert name is not None
            loaded[name] = load_clip(name).to(self.device)
        self.clips = {score: loaded[str(name)] for score, name in names.items()}
        if "aesthetic" in scores:
            assert settings.aesthetic_head is not None
            self.head = load_head(settings.aesthetic_head, self.clips["aesthetic"]).to(self.device)
        if "unsafe" in scores:
            assert settings.safety_checker is not None
            self.safety = load_safety(settings.safety_checker).to(self.device)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
        """Every score of every row, by the score's name."""
        import torch

        from model.pictures import to_tensor

        pictures = [to_tensor(decode(row["picture"]))[None] for row in rows]
        found: dict[str, list[float]] = {}
        embedded: dict[int, torch.Tensor] = {}
        for score, clip in sorted(self.clips.items()):
            if id(clip) not in embedded:
                embedded[id(clip)] = clip.embed_views([clip.picture_input(picture) for picture in pictures])
            pictures_of = embedded[id(clip)]
            if score == "similarity":
                values = (pictures_of * clip.embed_prompts([row["caption"] for row in rows])).sum(-1)
            else:
                values = self.head(pictures_of)
            found[score] = values.cpu().tolist()
        if "unsafe" in self.scores:
            views = torch.cat([self.safety.picture_input(picture) for picture in pictures])
            found["unsafe"] = self.safety(views).cpu().tolist()
        return found


def load_clip(name: str) -> Any:
    """A `ClipScorer`; `micro` is the CLIP of the micro world that ships with the code.

    Raises:
        StageError: There is no such model.
    """
    from model.micro_sd.weights import WEIGHTS_FOLDER
    from model.scoring.metrics import ClipScorer

    try:
        if name == MICRO:
            return ClipScorer.from_pretrained(WEIGHTS_FOLDER / "clip", WEIGHTS_FOLDER / "tokenizer")
        return ClipScorer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise StageError(f"filter.scoring: the CLIP {name!r} cannot be loaded: {error}") from error


def load_safety(name: str) -> Any:
    """A `SafetyScorer`.

    Raises:
        StageError: There is no such safety checker.
    """
    from model.scoring.safety import SafetyCheckerError, SafetyScorer

    try:
        return SafetyScorer.from_pretrained(name)
    except SafetyCheckerError as error:
        raise StageError(f"filter.scoring.safety_checker: {error}") from error


def load_head(path: str, clip: Any) -> Any:
    """LAION's aesthetic head for the embeddings of `clip`.

    Raises:
        StageError: It is none, or reads embeddings of another width.
    """
    from model.scoring.aesthetic import AestheticHead, AestheticHeadError

    try:
        head = AestheticHead.from_pretrained(path)
    except AestheticHeadError as error:
        raise StageError(f"filter.scoring.aesthetic_head: {error}") from error
    width = clip.clip.config.projection_dim
    if head.width != width:
        raise StageError(
            f"filter.scoring: the aesthetic head {path} reads embeddings of {head.width} numbers, the CLIP of "
            f"filter.scoring.aesthetic_clip has {width}; LAION's heads are for openai/clip-vit-large-patch14."
        )
    return head
