from __future__ import annotations

import argparse
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipelines.cli.arguments import make_parser
from pipelines.cli.messages import next_steps
from pipelines.config.loading import load_config
from pipelines.store.store import Output, Store
from tests.support.command_errors import error_of
from tests.support.mlflow_server import free_port

FLAGS = {
    "run": "--dry-run --force --from --help --profile --ray-address --set --stage",
    "plan": "--force --from --help --profile --set --stage",
    "doctor": "--help --profile --set",
    "status": "--help --profile --set",
    "generate": "--help --out --profile --prompt --seed --set --steps --subject --word",
    "serve": "--help --profile --ray-address --set",
    "report": "--help --profile --set",
    "storage": "--help --profile --remove --set",
    "manifests": "--cpus-per-node --gateway --gpus-per-node --help --image --output --profile --set",
}


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = make_parser()._subparsers
    assert actions is not None
    return dict(actions._group_actions[0].choices)  # type: ignore[arg-type]


def test_the_flags_are_frozen() -> None:
    found = {
        name: " ".join(sorted(flag for action in parser._actions for flag in action.option_strings if flag[:2] == "--"))
        for name, parser in commands().items()
    }
    assert found == FLAGS


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_is_quick(words: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run([sys.executable, "pipeline.py", *words], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "usage: pipeline.py" in found.stdout
    # CPU time, because the wall time depends on how busy the machine is.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--stage", "filtre"], "There is no stage 'filtre'. Did you mean 'filter'?"),
        (["--force", "filtre"], "There is no stage 'filtre'. Did you mean 'filter'?"),
        (
            ["--stage", "ingest", "--force", "filter"],
            "Stage ingest does not need filter, so that it cannot be forced with",
        ),
        (
            ["--stage", "ingest", "--from", "filter"],
            "Stage ingest does not need filter, so that it cannot be forced with",
        ),
        (["--from", "filtre"], "There is no stage 'filtre'. Did you mean 'filter'?"),
        (["--profile", "tiny"], "There is no profile 'tiny'; there are micro, sd15, sd15_one_gpu, sdxl, sdxl_one_gpu."),
        (["--set", "filter.aesthetic=6"], "There is no configuration key 'filter.aesthetic'."),
        (["--set", "filter.min_aesthetic=high"], "filter.min_aesthetic takes a number or null, not 'high'."),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_wrong_command_line_is_reported_before_anything_starts(
    command: str, words: list[str], sentence: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = error_of(capsys, command, "--set", folder, *words)
    assert code == 2
    assert said.startswith(sentence)
    assert not (tmp_path / "run" / "stages").exists()


def test_a_run_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, said = error_of(capsys, "run", "--set", f"run.folder={tmp_path / 'file' / 'run'}")
    assert code == 1
    assert said.startswith(f"Cannot write in the run folder {tmp_path / 'file' / 'run'}: a part of its path is a file")


def test_a_folder_that_is_not_there_is_found_before_anything_runs(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage customize would find out after the adapter is trained."""
    words = ["--set", f"customize.subjects=[{tmp_path / 'dog'}]", "--set", "customize.words=[dog]"]
    code, message = error_of(capsys, "run", "--set", folder, *words)
    assert code == 2
    assert message.startswith("customize.subjects: ")
    assert str(tmp_path / "dog") in message
    assert not (tmp_path / "run" / "stages").exists()


def test_a_folder_without_subjects_is_found_before_anything_runs(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage evaluate would find out after the adapter is trained."""
    (tmp_path / "subjects").mkdir()
    code, message = error_of(
        capsys, "run", "--set", folder, "--set", f"evaluate.subjects_folder={tmp_path / 'subjects'}"
    )
    assert code == 2
    assert "holds no subjects; it needs one folder of pictures for each" in message
    assert not (tmp_path / "run" / "stages").exists()


def test_a_backbone_that_is_no_folder_is_found_before_anything_runs(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "civitai.safetensors"
    weights.write_bytes(b"GGUF")
    words = ["--stage", "contextualizer", "--set", f"backbone.weights={weights}"]
    code, message = error_of(capsys, "run", "--set", folder, *words)
    assert code == 2
    assert message.startswith(f"backbone.weights: backbone {weights}: this is a quantized model in GGUF; ")
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("setting", [b"run.folder=%s/caf\xe9", b"multiview.folders=[%s/caf\xe9]"])
def test_a_path_that_is_not_utf_8_is_no_traceback(setting: bytes, tmp_path: Path) -> None:
    words = [b"--set", setting % bytes(tmp_path)]
    found = subprocess.run([sys.executable, "pipeline.py", "plan", *words], capture_output=True, text=True)
    assert "Traceback" not in found.stderr
    assert (found.returncode, "caf" in found.stderr) == (2, True)


@pytest.mark.parametrize("command", ["status", "report", "serve"])
def test_before_the_first_run(command: str, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = error_of(capsys, command, "--set", folder)
    assert code == 1
    assert said.startswith("Nothing has run in ")


def test_plan_and_dry_run_print_the_same_and_write_nothing(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.main(["plan", "--set", folder]) == 0
    plan = capsys.readouterr().out
    assert pipeline.main(["run", "--dry-run", "--set", folder]) == 0
    assert capsys.readouterr().out == plan
    assert "12 of 12 stages would run." in plan
    assert not (tmp_path / "run").exists()


def test_from_runs_a_stage_and_all_that_depend_on_it(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["plan", "--from", "customize", "--force", "prompts", "--set", folder]) == 0
    forced = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("forced")}
    assert forced == {"prompts", "customize", "evaluate", "register"}


def test_plan_of_one_stage(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["plan", "--stage", "filter", "--set", folder]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["microworld", "ingest", "filter", "3"]


def test_serve_on_a_port_in_use(trained: Output, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        folder = f"run.folder={trained.folder.parents[2]}"
        code, said = error_of(capsys, "serve", "--set", folder, "--set", f"serve.port={port}")
    assert code == 1
    assert str(port) in said


def test_a_ray_that_is_not_there(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = error_of(capsys, "run", "--stage", "prompts", "--set", folder, "--ray-address", "127.0.0.1:9")
    assert code == 1
    assert "127.0.0.1:9" in said
    assert "--ray-address" in said


def test_a_ray_address_that_is_not_taken(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = error_of(capsys, "run", "--stage", "prompts", "--set", folder, "--ray-address", "ray://10.0.0.1:10001")
    assert code == 2
    assert all(part in said for part in ("--ray-address", "ray://10.0.0.1:10001", "host:port"))


@pytest.mark.slow
def test_a_registry_that_is_not_there_is_found_before_anything_runs(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    code, said = error_of(capsys, "run", "--set", folder, "--set", f"run.tracking_uri={uri}")
    assert code == 1
    assert said.startswith(f"Stage register needs MLflow's registry, but the MLflow server {uri} cannot be used: ")
    assert not Path(folder.partition("=")[2], "stages").exists()


def test_a_wrong_tracking_uri_of_the_environment(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///data/mlruns")
    for command in ("run", "serve"):
        code, said = error_of(capsys, command, "--set", folder)
        assert (code, said.partition(" takes")[0]) == (2, "MLFLOW_TRACKING_URI")


@pytest.mark.parametrize(
    ("setting", "environment", "line"),
    [
        ("null", "", "mlflow ui --backend-store-uri sqlite+pysqlite:///{folder}/mlflow/mlflow.db"),
        ("https://mlflow", "", "https://mlflow (experiment realword)"),
        ("null", "http://mlflow:5000", "http://mlflow:5000 (experiment realword)"),
        ("null", "postgresql://anna:hush@db/x", "mlflow ui --backend-store-uri 'postgresql://***@db/x'"),
    ],
)
def test_the_last_message_says_where_the_records_are(
    setting: str, environment: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    config = load_config("micro", [f"run.tracking_uri={setting}"])
    printed = next_steps(config, Store(tmp_path), {}, "")
    assert printed.startswith("Records: ")
    assert printed.endswith(line.format(folder=tmp_path))


def test_status_shows_what_is_there(trained: Output, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["status", "--set", f"run.folder={trained.folder.parents[2]}"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "never ran" in lines["filter"]
    assert "out of date" in lines["train_adapter"]
    assert str(trained.folder) in lines["train_adapter"]
