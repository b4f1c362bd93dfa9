"""The command `generate`: its pictures, their names and metadata, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pipeline
from pipelines.cli.generate import file_title, write_new
from pipelines.config.loading import config_to_dict, load_config
from pipelines.fingerprint import Ingredients
from pipelines.store.store import Output, Store
from stages.contract import StageResult
from stages.local_copies import local_copy
from tests.support.command_errors import error_of
from tests.support.toy_pipeline import commit_stage


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


def test_what_is_cut_off_of_a_prompt_is_said(
    trained: Output, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.main([*request(trained, subject, "a cat in" + " hat" * 30), "--steps", "1"]) == 0
    printed = capsys.readouterr()
    assert "warning: the text encoder does not read the end of the prompt: 'at hat hat" in printed.err
    assert "warning" not in printed.out


def test_a_registered_adapter_is_named_with_its_version(
    trained: Output, subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "run")
    shutil.copytree(local_copy(trained.folder).parents[2], store.local_folder)
    words = [*request(trained, subject)[:2], f"run.folder={store.folder}", *request(trained, subject)[3:]]
    for number, adapter in enumerate((trained.fingerprint, "another")):
        mine = Ingredients(config={}, inputs={"train_adapter": adapter}, files={}, code=str(number))
        work = store.begin("register", mine.fingerprint, restart=True)
        (work.output / "registered.json").write_text(json.dumps({"name": "cats", "version": "4"}))
        commit_stage(store, "register", StageResult(), mine, work)
        config, stages = store.read_latest()
        store.write_latest(config, {**stages, "register": mine.fingerprint})
        assert pipeline.main([*words, "--steps", "1"]) == 0
        printed = capsys.readouterr()
        title = "cats version 4" if number == 0 else None
        assert printed.err.endswith(
            f"Painted with {title or 'an adapter that is not registered'} "
            f"(adapter {trained.fingerprint}) of {store.folder}.\n"
        )
        with Image.open(printed.out.splitlines()[0]) as picture:
            assert json.loads(picture.info["realword"])["model"] == title


def test_a_subject_may_come_through_a_pipe(
    trained: Output, subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(subject.read_bytes()), daemon=True)
    writer.start()
    assert pipeline.main([*request(trained, pipe), "--steps", "1", "--out", str(tmp_path / "out")]) == 0
    writer.join(timeout=60)
    with Image.open(capsys.readouterr().out.splitlines()[0]) as picture:
        made = json.loads(picture.info["realword"])
    assert made["subject_sha256"] == hashlib.sha256(subject.read_bytes()).hexdigest()


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
    shutil.copytree(local_copy(trained.folder).parents[2], copy)
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
