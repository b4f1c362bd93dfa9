"""CPU seconds and memory of the filter's search for duplicates, by the number of pictures.

    python -m tests.benchmarks.duplicate_search                # 100,000, 1 million and 3 million pictures
    python -m tests.benchmarks.duplicate_search 10000000       # 10 million pictures

Hardware and time: one core; a minute by default, 5 minutes and 5 GB of memory for 10 million pictures.

The signatures are random: independent hashes, and colours around a mean brightness distributed as in photographs. Every
hundredth picture is a near copy of an earlier one; the benchmark also counts the copies that the search misses.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

import numpy as np

from stages.filter.duplicates import COLOUR_BYTES, Signatures, find_duplicates
from tests.benchmarks.support.command_line import benchmark_parser

_SIZES = [100_000, 1_000_000, 3_000_000]
_COPIES = 100
_BRIGHTNESS, _SPREAD = 118, 45  # of photographs: mean, standard deviation


def draw_signatures(count: int) -> Signatures:
    """Draw random signatures; pictures 100, 200, ... are near copies of pictures 50, 150, ..."""
    rng = np.random.default_rng(0)
    bits = rng.integers(2**64, size=count, dtype=np.uint64)
    brightness = np.clip(rng.normal(_BRIGHTNESS, _SPREAD, count), 0, 255).astype(np.uint8)
    colours = np.repeat(brightness[:, None], COLOUR_BYTES, axis=1)
    copies = np.arange(_COPIES, count, _COPIES)
    bits[copies] = bits[copies - _COPIES // 2] ^ (np.uint64(1) << rng.integers(64, size=len(copies), dtype=np.uint64))
    colours[copies] = colours[copies - _COPIES // 2]
    digests = rng.integers(2**64, size=(count, 2), dtype=np.uint64)
    return Signatures(digests=digests, bits=bits, colours=colours, rows=np.arange(count))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("pictures", type=int, nargs="*", default=_SIZES)
    for count in parser.parse_args(arguments).pictures:
        signatures = draw_signatures(count)
        began = time.process_time()
        found = find_duplicates(signatures)
        seconds = time.process_time() - began
        copies = np.arange(_COPIES, count, _COPIES)
        missed = int((found.original[copies] < 0).sum())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{count:,} pictures: {seconds:.1f} CPU s, {missed} of {len(copies):,} copies missed, "
            f"{int((found.original >= 0).sum()):,} found, peak {peak:,.0f} MiB with the signatures",
            flush=True,
        )


if __name__ == "__main__":
    main()
