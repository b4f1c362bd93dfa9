"""What the Hugging Face hub, and its cache on this machine, have of a model. Only heads of files are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.pretrained import split_revision

#: Of one answer.
SECONDS = 6.0


@dataclass
class HubError(Exception):
    """Why a model cannot be had from the hub.

    Attributes:
        text: What is so, and what to do.
        is_known: The hub has said so; otherwise it could not be asked.
    """

    text: str
    is_known: bool = True


def is_offline() -> bool:
    """Whether the user wants no requests to the hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Where the hub's files are kept on this machine."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_snapshot(location: str) -> Path | None:
    """The folder with what the cache has of a model, `owner/name` or `owner/name@revision`; None: it has nothing."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    repository, options = split_revision(location)
    revision = options.get("revision", "main")
    try:
        place = cache_folder() / repo_folder_name(repo_id=repository, repo_type="model")
    except HFValidationError:
        return None
    with suppress(OSError):  # else it is a commit
        revision = (place / "refs" / revision).read_text().strip()
    snapshot = place / "snapshots" / revision
    return snapshot if revision and snapshot.is_dir() else None


def check_dataset_on_hub(repository: str) -> None:
    """Ask whether the files of a dataset may be downloaded.

    Raises:
        HubError: They may not, or the hub does not answer.
    """
    _is_there(repository, ".gitattributes", repo_type="dataset")


def check_on_hub(location: str, files: Sequence[Sequence[str]]) -> None:
    """Ask whether files of a model may be downloaded.

    Args:
        location: `owner/name` or `owner/name@revision`.
        files: Of each group one file is needed.

    Raises:
        HubError: They may not, or the hub does not answer.
    """
    repository, options = split_revision(location)
    for group in files:
        if not any(_is_there(repository, file, **options) for file in group):
            raise HubError(f"{location} on the hub has none of the files {', '.join(group)}; name another model")


def _is_there(repository: str, file: str, repo_type: str = "model", revision: str | None = None) -> bool:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        url = hf_hub_url(repository, file, repo_type=repo_type, revision=revision)
        get_hf_file_metadata(url, timeout=SECONDS)
    except errors.GatedRepoError as error:
        raise HubError(
            f"the licence of {repository} must be accepted: do so at {_page(repository, repo_type)}, then set HF_TOKEN "
            "to a token of that account, or run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no {repository}, or it is private: correct the name, give a folder (./{repository}), or set "
            "HF_TOKEN to a token that may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repository} on the hub has no revision {revision or 'main'}: correct it") from error
    except errors.EntryNotFoundError:
        return False
    except errors.HfHubHTTPError as error:
        raise _http_error(repository, repo_type, error) from error
    except errors.HFValidationError as error:
        raise HubError(f"{repository} is neither a folder nor a hub id: correct it") from error
    except Exception as error:  # of the network, of some kinds and packages
        raise HubError(f"the hub does not answer ({type(error).__name__})", is_known=False) from error
    return True


def _http_error(repository: str, repo_type: str, error: Any) -> HubError:
    status = getattr(error.response, "status_code", None)
    if status in (401, 403):
        return HubError(
            f"the hub refuses {repository} ({status}): accept its licence at {_page(repository, repo_type)}, and set "
            "HF_TOKEN to a token that may read it"
        )
    return HubError(f"the hub answers {status} for {repository}", is_known=status is not None and status < 429)


def _page(repository: str, repo_type: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repository}"
