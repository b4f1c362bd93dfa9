"""The files of a version in the model registry, and of its parts: where they are, or a copy in this machine's cache.

Each machine of a cluster fetches a version once, from the object store or through MLflow's server, with its own
credentials. This module imports nothing of `model`, as `stages.serve.served_model` explains.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from stages.cache import cache_folder
from stages.registered_model import PARTS
from stages.tracking_errors import reason
from stages.tracking_uri import masked

_VERIFIED = "verified"


class FetchError(Exception):
    """The files of a version cannot be copied to this machine; one sentence."""


@dataclass(frozen=True, kw_only=True)
class VersionFiles:
    """The files of a version, or of a part that versions share.

    Attributes:
        source: Their folder, or its URI: s3://..., or mlflow-artifacts:/... of a server.
        server: The URI of MLflow's server that passes them on, if one does.
    """

    source: str
    server: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether they are read where they are."""
        return "://" not in self.source and not self.source.startswith("mlflow-artifacts:")

    @property
    def is_verified(self) -> bool:
        """Whether their checksums have been compared; local files are compared by who offers them."""
        return self.is_local or (self._place / _VERIFIED).exists()

    def mark_verified(self) -> None:
        """Note that their checksums are right."""
        if not self.is_local:
            (self._place / _VERIFIED).touch()

    def folder(self) -> Path:
        """The folder on this machine, into which the files are copied first if need be.

        Raises:
            FetchError: They cannot be fetched.
        """
        if self.is_local:
            return Path(self.source)
        content = self._place / "content"
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._place.with_suffix(".lock")):
                if not content.exists():
                    self._fetch(content)
        except Exception as error:  # of MLflow, of the libraries of object stores, of the disk
            why = reason(error)
            if isinstance(error, OSError) and error.filename is not None:  # of the disk
                why = f"{error.strerror}; set XDG_CACHE_HOME to a folder that can be written"
            raise FetchError(
                f"The files of a registered model cannot be fetched from {masked(self.source)} to "
                f"{self._place.parent}: {why}."
            ) from error
        return content

    def part(self, digest: str) -> VersionFiles:
        """The files of a part of this version, which is in .../models/m-.../artifacts (see `register.shared_parts`)."""
        return replace(self, source=f"{self.source.rstrip('/').rsplit('/', 3)[0]}/{PARTS}/{digest}")

    def discard(self) -> None:
        """Delete this machine's copy, which is damaged."""
        if not self.is_local:
            shutil.rmtree(self._place, ignore_errors=True)

    @property
    def _place(self) -> Path:
        key = hashlib.sha256(f"{self.server}\n{self.source}".encode()).hexdigest()[:24]
        return registry_cache() / key

    def _fetch(self, content: Path) -> None:
        from mlflow.artifacts import download_artifacts

        shutil.rmtree(self._place, ignore_errors=True)
        partial = str(self._place / "partial")
        Path(download_artifacts(self.source, dst_path=partial, tracking_uri=self.server)).rename(content)


def registry_cache() -> Path:
    """Where copies are kept."""
    return cache_folder() / "registry"
