"""Every benchmark can be started from the repository's root, and its help says how."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

NAMES = sorted(
    file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith(("test_", "__init__"))
)


@pytest.mark.parametrize("name", NAMES)
def test_help_starts_with_the_commands_hardware_and_time(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"tests.benchmarks.{name}"
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)  # another test may have imported it
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)  # as `python -m` does
    assert ended.value.code == 0
    paragraphs = capsys.readouterr().out.split("\n\n")
    commands = paragraphs[2].splitlines()
    assert all(re.match(rf"    (OMP_NUM_THREADS=1 )?python -m {module}\b", command) for command in commands)
    assert paragraphs[3].startswith("Hardware and time: ")


def test_every_published_command_is_a_benchmark() -> None:
    repository = Path(__file__).parents[2]
    pages = [repository / "README.md", *repository.glob("docs/*.md"), repository / "model/micro_sd/weights/README.md"]
    named = {name for page in pages for name in re.findall(r"tests\.benchmarks\.(\w+)", page.read_text())}
    assert named <= set(NAMES)
    assert set(NAMES) <= set(re.findall(r"tests\.benchmarks\.(\w+)", (repository / "docs/benchmarks.md").read_text()))
