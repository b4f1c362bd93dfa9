"""Stage `customize`: concepts from a few pictures of each subject, by one of four methods, with or without MLM and ICO.

Writes `concepts/<name>/` (see `model.concepts.folder`) for each subject, `checkpoints/<name>/step-<step>/` at the steps
that were sampled, `concepts.json` with the scores and whether a concept has learned, `samples.png`, `curves.png` and
`trade_off.png`. Subjects are learned side by side, each on the project's trainer; one that fails does not stop the
others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from stages.contract import StageContext, StageError, StageResult
from stages.customize.class_pictures import class_pictures
from stages.customize.config import CustomizeConfig
from stages.customize.entries import concept_entry, mean_scores, scored_subjects, write_concept_folders
from stages.customize.figures import draw_samples, plot_losses, plot_trade_off
from stages.customize.learning import LearnedConcept, learn_concept, stop_request
from stages.customize.preparation import PreparedSubject, prepare_subjects
from stages.customize.side_by_side import Board, run_side_by_side
from stages.customize.subjects import Subject, find_subjects
from stages.ray_tools.cluster import cluster_cores, node_cores
from stages.storage import local_folder, write_whole

#: The name of the concept that all subjects are learned in together.
_JOINT = "joint"


def run(context: StageContext) -> StageResult:
    """Learn every concept, score it and say whether it has learned."""
    config = context.config.customize
    subjects = find_subjects(config, context.inputs, context.report)
    prepared = prepare_subjects(subjects, context)
    groups = {_JOINT: subjects} if config.joint else {subject.name: [subject] for subject in subjects}
    outcomes = _learn_all(groups, prepared, context)
    learned = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, LearnedConcept)}
    failed = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Exception)}
    if not learned:
        _raise(failed)
    for name, error in failed.items():
        context.report.warning(f"{name} was not learned: {_sentence(error)}; --force customize tries it again")
    entries = [entry for name, concept in learned.items() for entry in write_concept_folders(name, concept, context)]
    write_whole(context.output / "concepts.json", json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    _say(entries, context)
    _draw(list(learned.values()), context)
    return StageResult(metrics=mean_scores(entries), notes=_notes(entries, failed))


def _learn_all(
    groups: Mapping[str, Sequence[Subject]], prepared: Mapping[str, PreparedSubject | StageError], context: StageContext
) -> dict[str, LearnedConcept | Exception]:
    """The concept of each group of subjects, or why it was not learned."""
    config = context.config.customize
    usable = [own for own in groups.values() if all(isinstance(prepared[one.name], PreparedSubject) for one in own)]
    of_classes = class_pictures([subject.word for own in usable for subject in own], context)
    at_once = min(len(groups), _at_once(config))
    share = max(1, (context.config.run.cpus or cluster_cores()) // at_once)
    cores = min(share, max(node_cores()))  # what scores a concept is on one node
    own_config = dataclasses.replace(context.config, run=dataclasses.replace(context.config.run, cpus=cores))
    scratch = {name: context.scratch / "concepts" / name for name in groups}
    board = Board(report=context.report, totals=dict.fromkeys(groups, config.steps))

    def learn(name: str) -> LearnedConcept:
        report = board.reporter(name, _run_settings(groups[name], config))
        scratch[name].mkdir(parents=True, exist_ok=True)
        own = dataclasses.replace(context, config=own_config, scratch=scratch[name], report=report)
        try:
            concept = learn_concept(_usable(groups[name], prepared), of_classes, own)
        except Exception as error:
            report.end_run({}, _sentence(error))
            raise
        report.end_run(mean_scores([concept_entry(name, *pair, context.config) for pair in scored_subjects(concept)]))
        return concept

    requests = {name: stop_request(folder) for name, folder in scratch.items()}
    return run_side_by_side(list(groups), learn, at_once, requests)


def _usable(subjects: Sequence[Subject], prepared: Mapping[str, PreparedSubject | StageError]) -> list[PreparedSubject]:
    """The prepared subjects of a concept.

    Raises:
        StageError: One cannot be learned.
    """
    found = []
    for one in (prepared[subject.name] for subject in subjects):
        if isinstance(one, StageError):
            raise one
        found.append(one)
    return found


def _at_once(config: CustomizeConfig) -> int:
    """How many trainings the cluster has GPUs or cores for."""
    import ray

    available = int(ray.cluster_resources().get("GPU", 0)) if config.trainer.use_gpu else cluster_cores()
    return max(1, available // config.trainer.workers)


def _run_settings(subjects: Sequence[Subject], config: CustomizeConfig) -> dict[str, str]:
    return {
        "method": config.method,
        "mlm": str(config.mlm).lower(),
        "prompts": config.prompts,
        "word": ", ".join(subject.word for subject in subjects),
        "placeholder": ", ".join(subject.placeholder for subject in subjects),
    }


def _raise(failed: Mapping[str, Exception]) -> None:
    """Raise the error of the only subject, or one sentence on all.

    Raises:
        StageError: Always, unless the only error is an unexpected one.
    """
    first_name, first = next(iter(failed.items()))
    if len(failed) == 1:
        raise first
    raise StageError(
        f"none of {len(failed)} subjects was learned ({', '.join(failed)}): {first_name}: {_sentence(first)}."
    ) from first


def _sentence(error: Exception) -> str:
    """What a failure says, on one line; of an unexpected one also its type."""
    kind = "" if isinstance(error, StageError) else f"{type(error).__name__}: "
    return f"{kind}{' '.join(str(error).split())}".rstrip(".: ")


def _say(entries: Sequence[Mapping[str, Any]], context: StageContext) -> None:
    """Show the scores, and warn of every concept that has not learned."""
    head = ["concept", "learned", "subject similarity", "of the class word", "prompt fidelity", "of the class word"]
    keys = ("similarity", "class_similarity", "fidelity", "class_fidelity")
    rows = [
        [entry["name"], "yes" if entry["learned"] else "no", *(f"{entry['scores'][key]['mean']:.3f}" for key in keys)]
        for entry in entries
    ]
    context.report.table(head, rows)
    for entry in entries:
        if not entry["learned"]:
            context.report.warning(
                f"the concept {entry['name']} has not learned its subject and will not be registered: "
                f"{entry['verdict']}; try other customize.steps or customize.trainer.learning_rate"
            )


def _draw(concepts: Sequence[LearnedConcept], context: StageContext) -> None:
    scores = {subject.name: scored for concept in concepts for subject, scored in scored_subjects(concept)}
    with local_folder(context.output) as folder:
        draw_samples(concepts, folder / "samples.png")
        plot_losses(concepts, folder / "curves.png")
        plot_trade_off(scores, folder / "trade_off.png")
    for name in ("samples", "curves", "trade_off"):
        context.report.picture(name, context.output / f"{name}.png")


def _notes(entries: Sequence[Mapping[str, Any]], failed: Mapping[str, Exception]) -> dict[str, str]:
    notes = {"subjects": ", ".join(entry["name"] for entry in entries)}
    not_learned = ", ".join(entry["name"] for entry in entries if not entry["learned"])
    named = {"not_learned": not_learned, "failed": ", ".join(failed)}
    return notes | {key: text for key, text in named.items() if text}
