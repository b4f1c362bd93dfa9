"""The command `doctor`: its lines, its exit code, and that it waits for nothing and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from pipelines.cli.doctor import lines
from pipelines.config.loading import load_config
from pipelines.doctor import examination
from pipelines.doctor.examination import all_checks, examine
from pipelines.doctor.findings import Finding, Setup, good, problem, unknown, warning
from tests.support.subject_folder import write_subjects
from tests.support.tiny_models import write_sd

FOUND = {"gpus": [good("1 GPU"), warning("slow\nGPU")], "weights": [problem("none"), unknown("no answer")]}


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "utf8"])
def test_a_line_for_each_finding(encoding: str) -> None:
    assert lines(FOUND, encoding) == [
        "\u2713 gpus     1 GPU",
        "! gpus     slow GPU",
        "\u2717 weights  none",
        "? weights  no answer",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", None])
def test_other_encodings_get_ascii(encoding: str | None) -> None:
    assert lines(FOUND, encoding)[0] == "ok gpus     1 GPU"
    assert all(line.isascii() for line in lines(FOUND, encoding))


def test_micro_is_all_right(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["doctor", "--set", folder]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Nothing would stop the run")
    assert list(tmp_path.iterdir()) == []


def test_problems_are_all_shown_and_end_with_an_exit_code(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoders = ["backbone.image_encoders=[clip]", "backbone.shallow_layers=[[0]]"]
    words = ["ingest.metadata=laion", "multiview.folders=[views]", f"backbone.weights={tmp_path}", *encoders]
    settings = [word for setting in [folder, *words, "evaluate.similarity=clip"] for word in ("--set", setting)]
    assert pipeline.main(["doctor", *settings]) == 1
    printed = capsys.readouterr()
    assert printed.err == "error: the run would stop: 5 problems, marked above.\n"
    for key in (*words[:3], "backbone.image_encoders", "evaluate.clip"):
        assert printed.out.count(f"  {key.partition('=')[0]}: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model.adapters.vision_models", None)
    found = examine(Setup.of(load_config("sd15")), {"a": lambda setup: iter([good("all")])})
    assert found == {"a": [good("all")]}


def test_a_check_that_waits_or_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "SECONDS", 0.3)
    end = threading.Event()

    def waits(setup: Setup) -> Iterator[Finding]:
        yield good("first")
        end.wait(20)
        yield good("never")

    def fails(setup: Setup) -> Iterator[Finding]:
        yield warning("before")
        raise RuntimeError("broken\ntwice")

    def works(setup: Setup) -> Iterator[Finding]:
        yield good("all")

    found = examine(Setup.of(load_config("micro")), {"a": waits, "b": fails, "c": works})
    end.set()
    assert [finding.text for finding in found["a"]] == ["first", "no answer within 0.3 s; the run itself waits longer"]
    assert found["b"][1] == unknown("this could not be checked: RuntimeError: broken twice")
    assert list(found["c"]) == [good("all")]


@pytest.mark.slow
def test_checks_that_need_the_same_libraries_do_not_disturb_one_another(folder: str, tmp_path: Path) -> None:
    """transformers loads its classes on demand; a process of its own has loaded none."""
    write_subjects(tmp_path / "subjects", {"dog": "dog"})
    settings = [
        folder,
        f"backbone.weights={write_sd(tmp_path / 'sd')}",
        f"evaluate.subjects_folder={tmp_path}/subjects",
    ]
    encoders = ["backbone.image_encoders=[clip]", "backbone.shallow_layers=[[0]]", "evaluate.clip=clip"]
    words = [word for setting in (*settings, *encoders) for word in ("--set", setting)]
    command = [sys.executable, pipeline.__file__, "doctor", "--profile", "sd15", *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120).stdout
    assert "1 subject (dog)" in printed
    assert "could not be checked" not in printed


def test_every_subject_has_a_check() -> None:
    modules = {file.stem for file in Path(examination.__file__).parent.glob("*.py")}
    with_check = {name for name in modules if "\ndef check(setup: Setup)" in _text(name)}
    assert set(all_checks()) == with_check


def _text(name: str) -> str:
    return (Path(examination.__file__).parent / f"{name}.py").read_text()
