"""Settings that only the microworld knows to be right. It is imported late: it takes long, and few settings need it."""

from __future__ import annotations

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
    if config.customize.subject is None and config.customize.word != CustomizeConfig().word:
        _check_word(config.customize.word)
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


def _check_word(word: str) -> None:
    from model.microworld.captions import GENERIC_NOUN
    from model.microworld.shapes import TRAINED_CATEGORIES

    words = sorted({GENERIC_NOUN, *TRAINED_CATEGORIES})
    if word not in words:
        raise UsageError(
            f"customize.word: the microworld holds out no {word!r}; choose one of {', '.join(words)}, or set "
            "customize.subject to a folder of pictures."
        )


def _check_prompts(prompts: list[str]) -> None:
    from model.microworld.captions import BACKGROUND_PHRASES

    for prompt in prompts:
        if not any(phrase in prompt for phrases in BACKGROUND_PHRASES.values() for phrase in phrases):
            known = ", ".join(phrases[0] for phrases in BACKGROUND_PHRASES.values())
            raise UsageError(f"evaluate.prompts: {prompt!r} names no background that the judge knows ({known}).")
