"""How many prompts of each kind a set has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prompts.schema import Variation

if TYPE_CHECKING:
    from stages.prompts.config import QuotasConfig


def counts_of(settings: QuotasConfig, total: int) -> dict[Variation, int]:
    """Prompts of each kind in a set of `total`: the quotas, and equal shares of the rest for those without one.

    Raises:
        ValueError: The quotas do not add up to it.
    """
    given: dict[Variation, int | None] = {
        "background": settings.background,
        "subject": settings.subject,
        "action": settings.action,
        "style": settings.style,
        "property": settings.property,
    }
    rest = total - sum(count for count in given.values() if count is not None)
    free = [kind for kind, count in given.items() if count is None]
    if rest < 0 or (rest and not free):
        raise ValueError(
            f"quotas add up to {total - rest}, which does not fit prompts_per_concept={total}; set that to their sum, "
            "or leave a quota null"
        )
    shares = {kind: rest // len(free) + (number < rest % len(free)) for number, kind in enumerate(free)}
    return {kind: shares[kind] if count is None else count for kind, count in given.items()}
