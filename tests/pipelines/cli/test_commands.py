from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pipeline
from pipelines.cli.arguments import make_parser
from pipelines.cli.generate import file_title, write_new
from pipelines.config.keys import flat_values
from pipelines.config.loading import config_to_dict, load_config
from pipelines.fingerprint import Ingredients
from pipelines.store.store import Output, Store
from stages.config import Config
from stages.contract import StageResult
from tests.support.random_adapter import write_random_adapter
from tests.support.tiny_models import write_sd
from tests.support.toy_pipeline import commit_stage

FLAGS = {
    "run": "--dry-run --force --from --help --profile --ray-address --set --stage",
    "plan": "--force --from --help --profile --set --stage",
    "status": "--help --profile --set",
    "generate": "--help --out --profile --prompt --seed --set --steps --subject --word",
    "serve": "--help --profile --set",
    "report": "--help --profile --set",
    "storage": "--help --profile --remove --set",
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


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"run.folder={tmp_path / 'run'}"


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The exit code of a failing command, and its error, which is one sentence."""
    code = pipeline.main(words)
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return code, printed[len("error: ") :].strip()


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
        (["--profile", "tiny"], "There is no profile 'tiny'; there are micro, sd15, sdxl."),
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
    code, message = error_of(capsys, "run", "--set", folder, "--set", f"customize.subject={tmp_path / 'dog'}")
    assert code == 2
    assert message.startswith("customize.subject: ")
    assert str(tmp_path / "dog") in message
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """A run folder with a tiny base and an adapter with random weights."""
    store = Store(tmp_path_factory.mktemp("trained") / "run")
    config = load_config("micro", [f"run.folder={store.folder}", "inference.steps=2", "inference.mask_steps=1"])
    base = Ingredients(config={}, inputs={}, files={}, code="base")
    write_sd(store.begin("base", base.fingerprint, restart=True) / "output" / "backbone")
    backbone = commit_stage(store, "base", StageResult(), base, begun=True).folder / "backbone"
    mine = Ingredients(config=config_slice(config), inputs={"base": base.fingerprint}, files={}, code="adapter")
    write_random_adapter(store.begin("train_adapter", mine.fingerprint, restart=True) / "output" / "adapter", backbone)
    adapter = commit_stage(store, "train_adapter", StageResult(), mine, begun=True)
    store.write_latest(config_to_dict(config), {"base": base.fingerprint, "train_adapter": mine.fingerprint})
    return adapter


def config_slice(config: Config) -> dict[str, Any]:
    return {key: value for key, value in flat_values(config).items() if key.startswith("backbone.")}


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


def request(trained: Output, subject: Path, prompt: str = "a cat in it", word: str = "cat") -> list[str]:
    folder = f"run.folder={trained.folder.parents[2]}"
    return ["generate", "--set", folder, "--subject", str(subject), "--word", word, "--prompt", prompt]


@pytest.mark.slow
def test_generate_writes_the_picture_and_its_mask(
    trained: Output, subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*request(trained, subject), "--out", str(tmp_path / "out"), "--seed", "3"]
    assert pipeline.main(words) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in files] == ["a-cat-in-it-3.png", "a-cat-in-it-3-mask.png"]
    pictures = [file.read_bytes() for file in files]
    assert [Image.open(file).format for file in files] == ["PNG", "PNG"]
    assert pipeline.main([*words, "--steps", "2"]) == 0
    again = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in again] == ["a-cat-in-it-3-2.png", "a-cat-in-it-3-2-mask.png"]
    assert [file.read_bytes() for file in again] == pictures, "the configuration says 2 steps, and the seed is the same"
    assert pipeline.main([*words, "--steps", "3"]) == 0
    assert [file.read_bytes() for file in files] == pictures
    assert (tmp_path / "out" / "a-cat-in-it-3-3.png").read_bytes() != pictures[0]


def test_a_picture_says_how_it_was_made(trained: Output, subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = request(trained, subject, "a café cat 雪", "café cat")
    words.insert(words.index("--word"), str(subject))
    assert pipeline.main([*words, "--seed", "7", "--steps", "1"]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in files][::2] == ["a-café-cat-雪-7.png", "a-café-cat-雪-8.png"]
    for number, file in enumerate(files):
        with Image.open(file) as picture:
            assert picture.info["Description"] == "a café cat 雪"
            made = json.loads(picture.info["realword"])
        assert made["settings"]["steps"] == 1
        del made["settings"]
        assert made == {
            "prompt": "a café cat 雪",
            "word": "café cat",
            "seed": 7 + number // 2,
            "subject_sha256": hashlib.sha256(subject.read_bytes()).hexdigest(),
            "model": None,
            "adapter": trained.fingerprint,
        }


TITLES = {
    "A photo of a mug, in the snow!": "a-photo-of-a-mug-in-the-snow",
    "шляпа mug снег": "шляпа-mug-снег",
    "дом mug лес": "дом-mug-лес",
    "雪の中の猫": "雪の中の猫",
    "แมวในหิมะ": "แมวในหิมะ",
    "cafe\u0301": "café",
    "../../etc/passwd": "etc-passwd",
    "a/b\\c:d*e": "a-b-c-d-e",
    "🎉": "picture",
    "con. ": "con",
}


@pytest.mark.parametrize(("prompt", "title"), TITLES.items())
def test_the_title_of_a_picture_is_its_prompt(prompt: str, title: str) -> None:
    assert file_title(prompt) == title


@given(st.text())
def test_every_prompt_makes_a_file_name(prompt: str) -> None:
    title = file_title(prompt)
    assert title
    assert len(os.fsencode(f"{title}-{2**63}-1000-mask.png")) <= 255
    assert not set(title) & set("/\\\0. \n")


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "cat-0-mask.png").write_bytes(b"mine")
    (tmp_path / "cat-0-2.png").symlink_to(tmp_path / "gone")
    for number in (3, 4):
        files = write_new(tmp_path, "cat-0", {"": b"picture", "-mask": b"mask"})
        assert [file.name for file in files] == [f"cat-0-{number}.png", f"cat-0-{number}-mask.png"]
        assert [file.read_bytes() for file in files] == [b"picture", b"mask"]
    assert (tmp_path / "cat-0-mask.png").read_bytes() == b"mine"
    assert not (tmp_path / "gone").exists()


def test_a_folder_for_pictures_that_cannot_be_made(
    trained: Output, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = error_of(capsys, *request(trained, subject), "--out", str(subject))
    assert code == 1
    assert str(subject) in said
    assert "--out" in said


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--seed", str(2**63)], ["--steps", "0"], ["--steps", "many"]])
def test_numbers_that_the_sampler_cannot_take(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        pipeline.main(["generate", "--subject", "a.png", "--word", "a", "--prompt", "a", *words])
    assert stopped.value.code == 2
    assert f"argument {words[0]}: takes a whole number from" in capsys.readouterr().err


def test_generate_makes_a_picture_of_each_subject(
    trained: Output, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = request(trained, subject)
    words.insert(words.index("--word"), str(subject))
    assert pipeline.main(words) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {file.parent for file in files} == {trained.folder.parents[2] / "generated"}
    assert [file.name for file in files if "mask" not in file.name] == ["a-cat-in-it-0.png", "a-cat-in-it-1.png"]


def test_a_word_that_is_not_in_the_prompt(trained: Output, subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = error_of(capsys, *request(trained, subject, "a cat in it", "dog"))
    assert code == 1
    assert "dog" in said
    assert "a, cat, in, it" in said.replace("'", "").replace('"', "")


def test_a_subject_that_is_no_picture(trained: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    for name in ("notes.png", "missing.png"):
        code, said = error_of(capsys, *request(trained, tmp_path / name))
        assert code == 1
        assert name in said


def test_a_damaged_adapter_is_found_by_its_checksum(
    trained: Output, subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained.folder.parents[2], copy)
    weights = next((copy / "stages" / "train_adapter").rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, said = error_of(capsys, *request(trained, subject)[:2], f"run.folder={copy}", *request(trained, subject)[3:])
    assert code == 1
    assert said.startswith(
        f"The output of stage train_adapter in {weights.parents[1]} is damaged: the checksum of adapter/"
    )
    assert said.endswith("rebuild it with --force train_adapter.")


def test_no_adapter_yet(folder: str, tmp_path: Path, subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "run")
    store.folder.mkdir()
    store.write_latest(config_to_dict(load_config("micro", [folder])), {})
    words = ["--set", folder, "--subject", str(subject), "--word", "cat", "--prompt", "a cat"]
    code, said = error_of(capsys, "generate", *words)
    assert code == 1
    assert "There is no trained adapter in" in said
    assert "python pipeline.py run --stage train_adapter" in said


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


def test_status_shows_what_is_there(trained: Output, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["status", "--set", f"run.folder={trained.folder.parents[2]}"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "never ran" in lines["filter"]
    assert "out of date" in lines["train_adapter"]
    assert str(trained.folder) in lines["train_adapter"]
