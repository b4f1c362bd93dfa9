"""What a failing command prints."""

from __future__ import annotations

import pytest

import pipeline


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The exit code of a failing command, and its error, which is one sentence; `generate` has said what it does."""
    code = pipeline.main(words)
    printed = capsys.readouterr().err
    if words[0] == "generate":
        printed = printed[max(printed.find("error: "), 0) :]
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return code, printed[len("error: ") :].strip()
