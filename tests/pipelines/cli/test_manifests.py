"""The command `manifests`: its files, and what it refuses."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

import pipeline

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = REPOSITORY / "infra" / "kuberay"
STORE = ["--set", "run.folder=s3://bucket/sd15"]
FILES = ["networkpolicy", "raycluster", "raycronjob", "rayjob", "rayservice", "serviceaccount"]


def test_the_examples_are_what_the_command_writes(tmp_path: Path) -> None:
    words = shlex.split((EXAMPLES / "rayjob.yaml").read_text().splitlines()[0].partition("pipeline.py ")[2])
    assert pipeline.main([*words, "--output", str(tmp_path)]) == 0
    assert [file.stem for file in sorted(tmp_path.iterdir())] == FILES
    for file in tmp_path.iterdir():
        command = shlex.join(["python", "pipeline.py", *words, "--output", "infra/kuberay"])
        assert (EXAMPLES / file.name).read_text() == file.read_text(), f"{file.name} is out of date: {command}"


def test_paths_are_printed_and_local_data_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["manifests", "--profile", "sd15", *STORE, "--output", str(tmp_path / "new" / "folder")]) == 0
    printed = capsys.readouterr()
    assert sorted(Path(line).stem for line in printed.out.splitlines()) == FILES
    assert "ingest.metadata is" in printed.err
    assert "multiview.folders is" in printed.err


@pytest.mark.parametrize("name", ["a\nb: c", "a\x85kind: Pod", "a\u2028b: c", "# a", "'a\" b", "{a: b}"])
def test_no_setting_breaks_the_yaml(name: str, tmp_path: Path) -> None:
    settings = [*STORE, "--set", f"prompts.model={name}"]
    code = pipeline.main(["manifests", *settings, "--output", str(tmp_path)])
    assert code in (0, 2)
    for file in tmp_path.iterdir():
        assert file.read_text().startswith("# Made by: python pipeline.py manifests ")
        assert set(yaml.safe_load(file.read_text())) <= {"apiVersion", "kind", "metadata", "spec"}


REFUSED: dict[str, tuple[list[str], str]] = {
    "no folder": ([], "run.folder"),
    "a relative folder": (["--set", "run.folder=runs/sd15"], "run.folder"),
    "an absolute folder": (["--set", "run.folder=/srv/runs"], "run.folder"),
    "a file's URI": (["--set", "run.folder=file:///srv/runs"], "run.folder"),
    "a URI of the memory": (["--set", "run.folder=memory://runs"], "run.folder"),
    "a mistyped URI": (["--set", "run.folder=s3:/bucket/run"], "run.folder"),
    "bytes that are no text": ([*STORE, "--set", "prompts.model=\udcff"], "prompts.model"),
    "a local URI": (["--set", "run.folder=local:///srv/runs"], "run.folder"),
    "a password in the run folder": (["--set", "run.folder=s3://key:secret@bucket/run"], "run.folder"),
    "a password without a user": ([*STORE, "--set", "ingest.metadata=https://:secret@host/a"], "ingest.metadata"),
    "a password for the data": ([*STORE, "--set", "ingest.metadata=s3://key:secret@bucket/a"], "ingest.metadata"),
    "a signed URL": ([*STORE, "--set", "ingest.metadata=https://b/a?X-Amz-Signature=abc"], "ingest.metadata"),
    "a shared access signature": ([*STORE, "--set", "ingest.metadata=https://b/a?sv=1&sig=abc"], "ingest.metadata"),
    "an access key": ([*STORE, "--set", "ingest.metadata=s3://b/a?secret_key=abc"], "ingest.metadata"),
    "an unknown setting": ([*STORE, "--set", "serve.replica=2"], "serve.replica"),
    "a wrong value": ([*STORE, "--set", "serve.replicas=none"], "serve.replicas"),
    "an unknown profile": (["--profile", "sd99", *STORE], "sd99"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_a_file_is_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, named = REFUSED[case]
    assert pipeline.main(["manifests", *words, "--output", str(tmp_path / "new")]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("error: ")
    assert named in sentence
    assert not any(secret in sentence for secret in ("key:secret", "sig=abc", "Signature=abc"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--image", ""],
        ["--image", "two words"],
        ["--image", "-rm"],
        ["--image", "a;b"],
        ["--gateway", ""],
        ["--gateway", "Istio Class"],
        ["--gpus-per-node", "0"],
        ["--cpus-per-node", "-1"],
        ["--cpus-per-node", "8.5"],
    ],
)
def test_arguments_are_checked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        pipeline.main(["manifests", *STORE, "--output", "out", *words])
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_a_file_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    for output in ("taken", "taken/below"):
        assert pipeline.main(["manifests", *STORE, "--output", str(tmp_path / output)]) == 1
        assert str(tmp_path / output) in capsys.readouterr().err
