"""What the Hugging Face hub, and its cache on this machine, have of a model. Only heads of files are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def cached_snapshot(repository: str) -> Path | None:
    """The folder with what the cache has of the newest version of a model; None: it has nothing."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        place = cache_folder() / repo_folder_name(repo_id=repository, repo_type="model")
        revision = (place / "refs" / "main").read_text().strip()
    except (OSError, HFValidationError):
        return None
    snapshot = place / "snapshots" / revision
    return snapshot if revision and snapshot.is_dir() else None


def check_on_hub(repository: str, files: Sequence[Sequence[str]]) -> None:
    """Ask whether files of a model may be downloaded.

    Args:
        repository: owner/name.
        files: Of each group one file is needed.

    Raises:
        HubError: They may not, or the hub does not answer.
    """
    for group in files:
        if not any(_is_there(repository, file) for file in group):
            raise HubError(f"{repository} on the hub has none of the files {', '.join(group)}; name another model")


def _is_there(repository: str, file: str) -> bool:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=SECONDS)
    except errors.GatedRepoError as error:
        raise HubError(
            f"the licence of {repository} must be accepted: do so at {_page(repository)}, then set HF_TOKEN to a token "
            "of that account, or run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no {repository}, or it is private: correct the name, give a folder (./{repository}), or set "
            "HF_TOKEN to a token that may read it"
        ) from error
    except errors.EntryNotFoundError:
        return False
    except errors.HfHubHTTPError as error:
        raise _http_error(repository, error) from error
    except errors.HFValidationError as error:
        raise HubError(f"{repository} is neither a folder nor a hub id: correct it") from error
    except Exception as error:  # of the network, of some kinds and packages
        raise HubError(f"the hub does not answer ({type(error).__name__})", is_known=False) from error
    return True


def _http_error(repository: str, error: Any) -> HubError:
    status = getattr(error.response, "status_code", None)
    if status in (401, 403):
        return HubError(
            f"the hub refuses {repository} ({status}): accept its licence at {_page(repository)}, and set HF_TOKEN to "
            "a token that may read it"
        )
    return HubError(f"the hub answers {status} for {repository}", is_known=status is not None and status < 429)


def _page(repository: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"
