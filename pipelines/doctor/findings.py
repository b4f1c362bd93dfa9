"""What a check finds out, and what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from pipelines.fingerprint import settings_read
from pipelines.graph import Graph, pipeline_graph
from pipelines.store.store import Store
from stages.config import Config


class Level(Enum):
    """How a finding bears on the run."""

    GOOD = "good"
    UNKNOWN = "unknown"
    WARNING = "warning"
    PROBLEM = "problem"  # it would stop the run


@dataclass(frozen=True)
class Finding:
    """One sentence: what is so, and if it is not good, what to do."""

    level: Level
    text: str


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that has not begun."""

    config: Config
    graph: Graph
    store: Store

    @classmethod
    def of(cls, config: Config) -> Setup:
        """The whole pipeline of a configuration.

        Raises:
            PipelineError: Nothing can be kept in its run folder.
        """
        return cls(config=config, graph=pipeline_graph(config), store=Store.at(config.run.folder))

    def reads(self, key: str) -> bool:
        """Whether a stage of the run reads a setting."""
        return any(key in settings_read(self.config, stage) for stage in self.graph.stages.values())


#: Each yields its findings. It writes nothing.
Check = Callable[[Setup], Iterator[Finding]]


def counted(number: int, word: str) -> str:
    """A number of things: "1 object", "2,000 objects"."""
    return f"{number:,} {word}{'s' if number != 1 else ''}"


def good(text: str) -> Finding:
    """Something is as it must be."""
    return Finding(Level.GOOD, text)


def unknown(text: str) -> Finding:
    """Something cannot be found out from here."""
    return Finding(Level.UNKNOWN, text)


def warning(text: str) -> Finding:
    """Something is not as it should be; the run works."""
    return Finding(Level.WARNING, text)


def problem(text: str) -> Finding:
    """Something would stop the run."""
    return Finding(Level.PROBLEM, text)
