"""The outcomes of a metadata row: kept, rejected or failed, the last two with a reason.

Rejected rows are not wanted. Failed rows could not be downloaded this time; `ingest.retry=failed` tries them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stages.contract import StageError

#: Reasons found in the metadata; nothing is downloaded for such rows.
REJECTED_BY_METADATA = (
    "no_url",
    "no_caption",
    "caption_encoding",  # it is not UTF-8, or was damaged before
    "long_caption",
    "bad_url",
    "too_small",
    "aspect_ratio",
    "similarity",
    "unsafe",
    "watermark",
    "aesthetic",
    "language",
    "duplicate_url",
    "duplicate_id",
)
#: Reasons found during the download.
REJECTED_AFTER_DOWNLOAD = (
    "bad_url",  # of a redirect
    "private_address",
    "opted_out",
    "too_many_bytes",
    "wrong_type",
    "too_many_pixels",
    "decode",
    "too_small",
    "aspect_ratio",
)
FAILED = (
    "dns",
    "connection",
    "reset",
    "tls",
    "timeout",
    "redirects",
    "not_found",
    "forbidden",
    "busy",
    "http_error",
    "protocol",
    "incomplete",
    "lost",  # img2dataset has dropped the row
    "error",  # unexpected; the detail is its message
)
#: Failures that may be short. A host that timed out is not tried again at once.
TRANSIENT = frozenset({"reset", "busy", "incomplete"})

_STATUSES = {401: "forbidden", 403: "forbidden", 451: "forbidden", 404: "not_found", 410: "not_found"}
_STATUSES |= dict.fromkeys((408, 425, 429, 500, 502, 503, 504), "busy")
_IMG2DATASET = {"image too small": "too_small", "aspect ratio too large": "aspect_ratio"}


def reason_of_status(status: int) -> str:
    """The reason for an HTTP status other than 200."""
    return _STATUSES.get(status, "http_error")


def reason_of(status: str | None, message: str) -> tuple[str, str]:
    """Reason and detail for img2dataset's status and message.

    Errors of our own code arrive in the message as "reason: detail". The status is None when img2dataset returned no
    such row.
    """
    reason, _, detail = message.partition(": ")
    if status is None:
        return "lost", "img2dataset returned no such row"
    if reason in REJECTED_AFTER_DOWNLOAD or reason in FAILED:
        return reason, detail
    if status == "failed_to_resize":
        return _IMG2DATASET.get(message, "decode"), message
    return "bad_url", message  # urllib refuses some URLs before it calls our opener


def check_sum(rows: int, kept: int, rejected: Counter[str], failed: Counter[str]) -> None:
    """Check that each row has exactly one outcome.

    Raises:
        StageError: Rows are missing or counted twice.
    """
    if rows != kept + rejected.total() + failed.total():
        raise StageError(
            f"the rows do not add up: {rows} in the metadata, but {kept} kept, {rejected.total()} rejected and "
            f"{failed.total()} failed; this is a defect of the stage ingest, and nothing was committed."
        )


def outcome_table(kept: int, rejected: Counter[str], failed: Counter[str]) -> Sequence[tuple[str, str, str, str]]:
    """The printed table: outcome, reason, rows and share. Within an outcome the largest reason comes first."""
    rows = max(1, kept + rejected.total() + failed.total())
    found = [("kept", "", kept)]
    found += [("rejected", reason, count) for reason, count in rejected.most_common()]
    found += [("failed", reason, count) for reason, count in failed.most_common()]
    return [(outcome, reason, str(count), f"{100 * count / rows:.1f} %") for outcome, reason, count in found]


def check_failed_share(rows: int, kept: int, rejected: Counter[str], failed: Counter[str], allowed: float) -> None:
    """Check that some rows were kept and that not too many have failed.

    Raises:
        StageError: Nothing was kept, or a larger share than `allowed` has failed; names the leading reasons.
    """
    if kept and failed.total() <= allowed * rows:
        return
    leading = ", ".join(f"{reason} {count}" for reason, count in (failed or rejected).most_common(3))
    share = f"ingest.max_failed_share allows {allowed:g}" if kept else "none was kept"
    raise StageError(
        f"{failed.total()} of {rows} rows have failed and {rejected.total()} were rejected ({leading}; {share}); check "
        "the metadata's URLs and the network; the same command tries the failed rows again."
    )
