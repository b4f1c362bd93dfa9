"""Datasets on the Hugging Face hub, through its local cache."""

from __future__ import annotations

import re
from pathlib import Path

from stages.contract import StageError

#: owner/name. With another number of slashes a text is a path.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(source: str) -> bool:
    """Whether a setting names a dataset on the hub: paths are absolute, and URIs have a scheme."""
    return _HUB_ID.fullmatch(source) is not None


def cached_dataset(name: str) -> Path | None:
    """The folder with what the hub's cache has of a dataset; None: nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def hub_dataset(name: str) -> Path:
    """The folder with the files of a dataset, which are downloaded unless they are in the cache.

    Raises:
        StageError: There is no such dataset, the user may not read it, or the hub cannot be reached and the cache lacks
            it.
    """
    from huggingface_hub import snapshot_download  # takes a second
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    setting = f"filter.pictures_folder: {name}"
    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except GatedRepoError as error:
        page = f"https://huggingface.co/datasets/{name}"
        raise StageError(f"{setting} has conditions: accept them at {page} and log in with `hf auth login`.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise StageError(
            f"{setting} is neither a folder here nor a dataset on the hub that you may read; log in with "
            "`hf auth login` if it is private."
        ) from error
    except LocalEntryNotFoundError as error:
        raise StageError(
            f"{setting} is neither a folder here nor in the hub's cache, and the hub cannot be reached; give the "
            "path of a folder, or download it where there is a network."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise StageError(f"{setting} cannot be downloaded: {' '.join(str(error).split())[:300]}") from error
