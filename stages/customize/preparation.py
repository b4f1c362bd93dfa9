"""What is read and checked of all subjects before anything is painted or trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.backbone import load_tokenizer
from model.concepts.customization_settings import ConceptSubject, CustomizationSettings
from model.concepts.subject_checks import check_prompts, check_words, readable_prompts
from model.pictures.decoding import to_png
from stages.config import Config
from stages.contract import StageContext, StageError
from stages.customize.rich_prompts import rich_prompts
from stages.customize.subjects import Subject, read_captions, read_pictures
from stages.inference import backbone_location, backbone_setting, model_errors_as_stage_errors, on_this_machine
from stages.local_copies import local_copy
from stages.storage import store_path


@dataclass(frozen=True, kw_only=True)
class PreparedSubject:
    """A subject that can be learned.

    Attributes:
        subject: Without class pictures.
        rich_prompts: For the MLM loss; empty without it.
    """

    subject: ConceptSubject
    rich_prompts: tuple[str, ...]


def prepare_subjects(subjects: Sequence[Subject], context: StageContext) -> dict[str, PreparedSubject | StageError]:
    """Each subject by its name, or why it cannot be learned; warns of prompts that are cut off.

    Raises:
        StageError: The backbone does not know a class word, or has a placeholder already.
    """
    with model_errors_as_stage_errors():
        tokenizer = load_tokenizer(_tokenizer_location(context))
        for subject in subjects:
            check_words(tokenizer, subject.placeholder, subject.word, context.config.customize.method)
    prepared: dict[str, PreparedSubject | StageError] = {}
    for subject in subjects:
        try:
            with model_errors_as_stage_errors():
                prepared[subject.name] = _prepare(subject, tokenizer, context)
        except StageError as error:
            prepared[subject.name] = error
    return prepared


def _tokenizer_location(context: StageContext) -> str:
    """A backbone of which this machine needs the tokenizer only."""
    location = backbone_location(context.config.backbone, context.inputs)
    if "://" not in location:
        return on_this_machine(location, backbone_setting(context.config.backbone))
    return str(local_copy(store_path(location) / "tokenizer").parent)


def _prepare(subject: Subject, tokenizer: Any, context: StageContext) -> PreparedSubject:
    config, settings = context.config.customize, customization_settings(context.config)
    pictures = read_pictures(subject, context.config.backbone.resolution, context.report)
    found = ConceptSubject(
        name=subject.name,
        word=subject.word,
        placeholder=subject.placeholder,
        pictures=tuple(to_png(picture) for picture in pictures.values()),
        captions=read_captions(list(pictures), subject) if config.prompts == "captions" else None,
    )
    warnings = check_prompts(tokenizer, found, settings)
    rich: list[str] = []
    if config.mlm:
        listed = rich_prompts(context.inputs["prompts"], found.word, found.placeholder)
        rich, more = readable_prompts(tokenizer, listed, found, settings)
        warnings += more
    for warning in warnings:
        context.report.warning(warning)
    return PreparedSubject(subject=found, rich_prompts=tuple(rich))


def customization_settings(config: Config) -> CustomizationSettings:
    """What the configuration says of the method."""
    section = config.customize
    return CustomizationSettings(
        method=section.method,
        full=section.full,
        vectors=section.vectors,
        lora_rank=section.lora_rank,
        prompts="ico" if section.prompts == "ico" else "fixed",
        context_before=section.context_before,
        context_after=section.context_after,
        mlm=section.mlm,
        mlm_weight=section.mlm_weight,
        mask_rate=section.mask_rate,
        prior_weight=section.prior_weight,
        batch_size=section.batch_size,
        flip=section.flip,
        crop=section.crop,
        resize=section.resize,
    )
