"""What can become of a row: it is kept, it is rejected, or it has failed; the last two with a reason.

Rejected: we do not want it. Failed: it could not be had this time; `ingest.retry=failed` asks for it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stages.contract import StageError

#: Seen in the metadata; such rows are never asked for.
REJECTED_UNSEEN = (
    "no_url",
    "no_caption",
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
#: Seen when the picture was asked for.
REJECTED_SEEN = (
    "bad_url",  # a redirect's
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
    "error",  # unforeseen, in its own words
)
#: Failures that may be over in a moment. A host that does not answer in time is not asked twice in a row.
TRANSIENT = frozenset({"reset", "busy", "incomplete"})

_STATUSES = {401: "forbidden", 403: "forbidden", 451: "forbidden", 404: "not_found", 410: "not_found"}
_STATUSES |= dict.fromkeys((408, 425, 429, 500, 502, 503, 504), "busy")
_IMG2DATASET = {"image too small": "too_small", "aspect ratio too large": "aspect_ratio"}


def reason_of_status(status: int) -> str:
    """Our short word for an HTTP status that is no success."""
    return _STATUSES.get(status, "http_error")


def reason_of(status: str | None, message: str) -> tuple[str, str]:
    """Our short word, and the detail, for img2dataset's status and message; status None: it returned no such row.

    Our own fetching and decoding speak through these messages as "reason: detail".
    """
    reason, _, detail = message.partition(": ")
    if status is None:
        return "lost", "img2dataset returned no such row"
    if reason in REJECTED_SEEN or reason in FAILED:
        return reason, detail
    if status == "failed_to_resize":
        return _IMG2DATASET.get(message, "decode"), message
    return "bad_url", message  # urllib's, which refuses some URLs before it asks our opener


def check_sum(rows: int, kept: int, rejected: Counter[str], failed: Counter[str]) -> None:
    """Refuse to commit when rows are missing or too many.

    Raises:
        StageError: With all four numbers.
    """
    if rows != kept + rejected.total() + failed.total():
        raise StageError(
            f"the rows do not add up: {rows} in the metadata, but {kept} kept, {rejected.total()} rejected and "
            f"{failed.total()} failed; this is a defect of the stage ingest, and nothing was committed."
        )


def outcome_table(kept: int, rejected: Counter[str], failed: Counter[str]) -> Sequence[tuple[str, str, str, str]]:
    """Outcome, reason, rows and share, the largest first within each outcome."""
    rows = max(1, kept + rejected.total() + failed.total())
    found = [("kept", "", kept)]
    found += [("rejected", reason, count) for reason, count in rejected.most_common()]
    found += [("failed", reason, count) for reason, count in failed.most_common()]
    return [(outcome, reason, str(count), f"{100 * count / rows:.1f} %") for outcome, reason, count in found]


def refuse_failures(rows: int, kept: int, rejected: Counter[str], failed: Counter[str], allowed: float) -> None:
    """Stop when nothing was kept, or when a larger share than `allowed` has failed.

    Raises:
        StageError: With the leading reasons.
    """
    if kept and failed.total() <= allowed * rows:
        return
    leading = ", ".join(f"{reason} {count}" for reason, count in (failed or rejected).most_common(3))
    share = f"ingest.max_failed_share allows {allowed:g}" if kept else "none was kept"
    raise StageError(
        f"{failed.total()} of {rows} rows have failed and {rejected.total()} were rejected ({leading}; {share}); check "
        "the metadata's URLs and the network; the same command asks again for what has failed."
    )
