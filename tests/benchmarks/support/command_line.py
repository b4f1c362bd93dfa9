"""The command line of a benchmark."""

from __future__ import annotations

import argparse


def benchmark_parser(docstring: str | None) -> argparse.ArgumentParser:
    """A parser whose `--help` shows the benchmark's docstring: commands, hardware, time and measurements."""
    return argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
