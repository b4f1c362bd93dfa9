"""Actors that compute scores which a threshold needs and the metadata lacks.

The similarity is CLIP's. The aesthetic score is that of LAION's head. The safety score is the margin of Stable
Diffusion's safety checker (`model/scoring/safety.py`); its threshold is 0.5, like that of LAION's own score, which a
Keras model computes. The watermark score cannot be computed. Only samples that pass all other rules are scored.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.pictures.decoding import load_picture
from stages.contract import Reporter, StageError
from stages.data.bulk_files import fetched
from stages.filter.candidate import Candidate
from stages.filter.config import FilterConfig, ScoringConfig
from stages.filter.rules import SCORE_RULES, computed_scores, score_of
from stages.filter.verdicts import VERDICTS, FileGroup, in_batches, read_rows, tally
from stages.ray_tools.mapping import Progress, Workers, map_on_workers, one_row_batches, rows_of
from stages.storage import StorePath, open_whole

MICRO = "micro"


def compute_scores(groups: list[FileGroup], folder: StorePath, settings: FilterConfig, report: Reporter) -> None:
    """Write the verdicts of `groups`, those with samples that wait for a score, again with the scores."""
    scored = map_on_workers(
        Scorer,
        one_row_batches({"group": vars(group)} for group in groups),
        arguments={"folder": folder, "settings": settings},
        workers=Workers(
            count=settings.scoring.actors,
            cpus=0.5,
            gpus=settings.scoring.gpus_per_actor if settings.scoring.use_gpu else 0,
        ),
        progress=Progress(
            report=report,
            total=sum(group.rows for group in groups),
            note="computing missing scores",
            amount=rows_of,
        ),
    )
    for _ in scored:
        pass


class Scorer:
    """An actor that holds the models."""

    def __init__(self, folder: StorePath, settings: FilterConfig) -> None:
        self.folder = folder
        self.settings = settings
        self.scores = computed_scores(settings)

    @cached_property
    def models(self) -> ScoreModels:
        """Loaded for the first batch, because of an actor that fails earlier Ray keeps only the error's text."""
        return ScoreModels(self.settings.scoring, self.scores)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Write the verdicts of the file groups in the column `group` with their scores."""
        for values in batch["group"].to_pylist():
            group = FileGroup(**values)
            with fetched(group.verdicts(self.folder)) as local:
                verdicts = pq.read_table(local).to_pylist()
            rows = itertools.chain.from_iterable(read_rows(group.files))
            pending = ((row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict["is_pending"])
            for some in in_batches(pending, self.settings.scoring.batch_size):
                found = self.score([row for row, _ in some])
                for (row, verdict), scores in zip(some, found, strict=True):
                    verdict |= scores | threshold(row, scores, self.settings)
            with open_whole(dataclasses.replace(group, is_scored=True).verdicts(self.folder)) as sink:
                pq.write_table(pa.Table.from_pylist(verdicts, schema=VERDICTS), sink)
            yield tally(group.number, len(verdicts), sum(verdict["is_pending"] for verdict in verdicts))

    def score(self, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        """The scores that each row lacks."""
        found = self.models(rows)
        missing = [[name for name in sorted(self.scores) if score_of(Candidate(row), name) is None] for row in rows]
        return [{name: found[name][row] for name in names} for row, names in enumerate(missing)]


def threshold(row: Mapping[str, Any], scores: Mapping[str, float], settings: FilterConfig) -> dict[str, Any]:
    """Reason and detail when a computed score is on the wrong side of its threshold, else an empty mapping."""
    candidate = Candidate({**row, **scores})
    for rule in SCORE_RULES:
        if rule.score in scores and (detail := rule.test(candidate, rule.limit(settings))) is not None:
            return {"reason": rule.name, "detail": f"{detail}, computed"}
    return {}


class ScoreModels:
    """The models that compute the scores."""

    def __init__(self, settings: ScoringConfig, scores: set[str]) -> None:
        import torch

        from model.scoring.metrics import ClipScorer

        self.device = torch.device("cuda" if settings.use_gpu else "cpu")
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
        """All scores of all rows, by the score's name."""
        import torch

        from model.pictures.tensors import to_tensor

        pictures = [to_tensor(load_picture(row["picture"]))[None] for row in rows]
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
    """Load a `ClipScorer`; `micro` is the CLIP of the micro world that ships with the code.

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
    """Load a `SafetyScorer`.

    Raises:
        StageError: There is no such safety checker.
    """
    from model.scoring.safety import SafetyCheckerError, SafetyScorer

    try:
        return SafetyScorer.from_pretrained(name)
    except SafetyCheckerError as error:
        raise StageError(f"filter.scoring.safety_checker: {error}") from error


def load_head(path: str, clip: Any) -> Any:
    """Load LAION's aesthetic head for the embeddings of `clip`.

    Raises:
        StageError: The file is not such a head, or the head reads embeddings of another width.
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
