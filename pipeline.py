"""Realword's command line: `python pipeline.py run --stage all`; `python pipeline.py --help` shows the rest."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from pipelines.cli.arguments import parse_arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names on disk need not be UTF-8
    arguments = parse_arguments(words)
    from pipelines.cli.commands import COMMANDS
    from pipelines.errors import PipelineError

    try:
        COMMANDS[arguments.command](arguments)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped. Finished stages are kept; the same command continues from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its exit
        return 0
    except Exception as error:
        from stages.storage_errors import storage_error

        if sentence := storage_error(error, "the store of the run folder"):
            print(f"error: {sentence}", file=sys.stderr)
            return 1
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
