"""Keeps the server on the version that the alias `champion` names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stages.contract import StageError
from stages.registered_model import CHAMPION
from stages.serve.registry import Registry, Versions
from stages.serve.served_model import ServedModel


@dataclass(kw_only=True)
class ChampionFollower:
    """Chooses the model to serve, and another one when the alias has moved.

    Attributes:
        registry: Where the versions are.
        shipped: Returns the model that answers as long as there is no champion; None: there must be one.
        deploy: Lets painters load a model, and take it in place of another one as soon as it is loaded. Raises
            StageError when it cannot be loaded.
        say: Shows the user a sentence.
        given: Is served whatever the registry has; None: the registry decides.
    """

    registry: Registry
    shipped: Callable[[], ServedModel] | None
    deploy: Callable[[ServedModel], None]
    say: Callable[[str], None]
    given: ServedModel | None = None
    _served: ServedModel | None = None
    _version: Versions | None = None  # served now; None: the shipped model
    _seen: Versions | None = None  # served now, or refused
    _said: str = ""

    def choose(self) -> ServedModel:
        """The model to begin with, verified.

        Raises:
            StageError: There is none, or it cannot be served.
        """
        if self.given is not None:
            self._served = self.given
            return self.given
        self._version = self._seen = self.registry.champion()
        if self._version is None and self.shipped is not None:
            self._served = self.shipped()
            reason = f"There is no registered model in {self.registry} yet"
            self.say(f"{reason}: the base and adapter that ship with Realword answer.")
        else:
            if self._version is not None:
                self.say(f"Reading {self.registry.name} version {self._version.model} from {self.registry}.")
            self._served = self.registry.fetch(self._version)
        return self._served

    def check(self) -> None:
        """Take the version that the alias names now, if it is another one and can be served; else go on."""
        if self.given is not None:
            return
        try:
            version = self.registry.champion()
            if version not in (None, self._seen):
                self._take(version)
            self._said = ""
        except StageError as error:
            self._say_once(f"{error} ({self._title()} goes on answering.)")

    def _take(self, version: Versions | None) -> None:
        self._seen = version
        if version == self._version:
            return
        model = self.registry.fetch(version)
        is_other = self._version is None or version is None or version.model != self._version.model
        self.say(
            f"{model.title} is the {CHAMPION} now." if is_other else f"The concepts of {model.title} have changed."
        )
        try:
            self.deploy(model)
        except StageError:
            if self._served is not None:
                self.deploy(self._served)  # which Serve would not start again otherwise, should a painter end
            raise
        self._served, self._version = model, version
        self.say(f"Serving {model}.")

    def _title(self) -> str:
        return "" if self._served is None else self._served.title

    def _say_once(self, message: str) -> None:
        if message != self._said:
            self.say(message)
        self._said = message
