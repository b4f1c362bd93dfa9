"""What a command says when it cannot go on: one sentence, and an exit code."""

from __future__ import annotations

import errno
from pathlib import Path

from stages.storage import StorePath
from stages.storage_errors import storage_error


class PipelineError(Exception):
    """A run that failed. The message is one sentence: what was wrong, where, and what to do."""

    exit_code = 1


class StoppedError(PipelineError):
    """A stage that was asked to stop, as by Ctrl-C."""


class UsageError(PipelineError):
    """A command line or a configuration that makes no sense; nothing was started."""

    exit_code = 2


#: What the operating system says when a folder cannot take what a run writes.
FOLDER_ERRORS = {
    errno.ENOSPC: "there is no space left on its disk; free some, or use another with --set run.folder=...",
    errno.EDQUOT: "its disk quota is used up; free some space, or use another folder with --set run.folder=...",
    errno.EACCES: "there is no permission to write there; change it, or use another with --set run.folder=...",
    errno.EPERM: "there is no permission to write there; change it, or use another with --set run.folder=...",
    errno.EROFS: "it is on a read-only disk; use another with --set run.folder=...",
    errno.ENOENT: "no folder can be made there; use another with --set run.folder=...",
    errno.ENOTDIR: "a part of its path is a file, not a folder; use another with --set run.folder=...",
    errno.EEXIST: "it is a file, not a folder; use another with --set run.folder=...",
}


def folder_error(error: BaseException, folder: StorePath) -> str | None:
    """One sentence when `error` says that the run folder cannot be read or written to; None for any other error.

    A file named by the error that lies outside `folder` is not the run folder's fault, except on a full disk.
    """
    if not isinstance(folder, Path):
        return storage_error(error, str(folder))
    if not isinstance(error, OSError) or (advice := FOLDER_ERRORS.get(error.errno or 0)) is None:
        return None
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    inside = isinstance(error.filename, str) and Path(error.filename).is_relative_to(folder)
    above = isinstance(error.filename, str) and folder.is_relative_to(error.filename)
    mine = above if error.errno == errno.ENOENT else full or inside or above
    return f"Cannot write in the run folder {folder}: {advice}." if mine else None
