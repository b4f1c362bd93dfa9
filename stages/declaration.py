"""How a stage declares itself: what it reads, and what its output depends on. No heavy import belongs here.

Each stage has its `STAGE` in `stages/<name>/declaration.py`; `pipelines/graph.py` collects them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stages.config import Config

#: Read by everything that is trained.
DEEPSPEED_FILES = "infra/deepspeed/*.json"

#: How a subject's pictures are encoded.
IMAGE_ENCODERS = (
    "backbone.image_encoders",
    "backbone.shallow_layers",
    "backbone.reference_size",
    "backbone.high_resolution_tiles",
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: what it reads, and what its output depends on.

    Attributes:
        name: Its name on the command line and of its output folder.
        module: The module whose `run(context)` is the stage.
        inputs: The stages whose outputs it reads, for a configuration.
        settings: The sections ("filter") and keys ("backbone.weights") of the configuration that it reads. Its output
            depends on their values and on the files that they name, settings of the operation excepted.
        previews: Settings that it reads only for pictures to look at: no part of its result.
        data: Files of the project, other than Python modules, that its output depends on: glob patterns.
        cpus: CPUs that it keeps busy; stages run side by side as long as there are enough.
        absent_when: For the user: the settings with which no stage reads its output, so that it is not part of a run.
    """

    name: str
    module: str
    inputs: Callable[[Config], list[str]] = lambda config: []
    settings: tuple[str, ...] = ()
    previews: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    cpus: Callable[[Config], int] = lambda config: 1
    absent_when: str = ""


def base_unless_given(config: Config) -> list[str]:
    """The stage `base`, unless the backbone comes from elsewhere."""
    return ["base"] if config.backbone.weights is None else []


def customize_if_wanted(config: Config) -> list[str]:
    """The stage `customize`, if concepts are to be learned."""
    return ["customize"] if config.customize.is_wanted else []


def evaluate_if_wanted(config: Config) -> list[str]:
    """The stage `evaluate`, if there is anything to paint and score."""
    return ["evaluate"] if config.evaluate.subjects else []
