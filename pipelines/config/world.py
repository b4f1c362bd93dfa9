"""Settings that only the microworld knows to be right. It is imported late: it takes long, and few settings need it."""

from __future__ import annotations

import re

from pipelines.errors import UsageError
from stages.config import Config
from stages.customize.config import CustomizeConfig


def check_world(config: Config) -> None:
    """Refuse what the microworld does not have.

    Raises:
        UsageError: A category, a class word or a background that it does not have.
    """
    for name in ("pool", "judge_pool"):
        _check_categories(config, name)
    if config.customize.subjects is None and config.customize.words != CustomizeConfig().words:
        _check_words(config.customize.words)
    if config.customize.placeholders:
        _check_placeholders(config)
    if config.evaluate.similarity == "judge" and config.evaluate.prompts:
        _check_prompts(config.evaluate.prompts)


def _check_categories(config: Config, pool_name: str) -> None:
    pool = getattr(config.base.recipe, pool_name)
    if pool.categories is None:
        return
    from model.microworld.scenes import categories_of

    known = categories_of(pool.split)
    unknown = [name for name in pool.categories if name not in known]
    if unknown:
        raise UsageError(
            f"base.recipe.{pool_name}.categories: a world of split {pool.split!r} has no {unknown[0]!r}; choose from "
            f"{', '.join(known)}."
        )


def _check_words(words: list[str]) -> None:
    from model.microworld.captions import GENERIC_NOUN
    from model.microworld.shapes import TRAINED_CATEGORIES

    known = sorted({GENERIC_NOUN, *TRAINED_CATEGORIES})
    for word in words:
        if word not in known:
            raise UsageError(
                f"customize.words: the microworld holds out no {word!r}; choose from {', '.join(known)}, or set "
                "customize.subjects to folders of pictures."
            )


def _check_placeholders(config: Config) -> None:
    """Refuse common words; the stage refuses every other token of the backbone's tokenizer."""
    from model.microworld.captions import VOCABULARY
    from prompts.english.contexts import DETAILS, FRAMES, MOODS, NEIGHBOURS, PLACES, RELATIONS, STYLES, TIMES

    phrases = (*FRAMES, *PLACES, *TIMES, *DETAILS, *RELATIONS, *NEIGHBOURS, *STYLES, *MOODS)
    common = {*VOCABULARY, *re.findall(r"[a-z]{2,}", " ".join(phrases).lower())}
    for placeholder in config.customize.placeholder_names:
        if placeholder.casefold() in common:
            raise UsageError(
                f"customize.placeholders: {placeholder!r} is a common word, and every prompt with it would show the "
                "subject; choose a new one, such as [v]."
            )


def _check_prompts(prompts: list[str]) -> None:
    from model.microworld.captions import BACKGROUND_PHRASES

    for prompt in prompts:
        if not any(phrase in prompt for phrases in BACKGROUND_PHRASES.values() for phrase in phrases):
            known = ", ".join(phrases[0] for phrases in BACKGROUND_PHRASES.values())
            raise UsageError(f"evaluate.prompts: {prompt!r} names no background that the judge knows ({known}).")
