"""Versions, GPUs, memory and disk: what is said of a machine that lacks something."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.backbone import load_backbone
from model.methods.registry import METHODS
from pipelines.config.loading import load_config
from pipelines.doctor import disk, memory
from pipelines.doctor.disk import check_room, run_bytes
from pipelines.doctor.findings import Finding, Level, Setup
from pipelines.doctor.gpus import check as check_gpus
from pipelines.doctor.gpus import check_gpu_count, uses_bf16
from pipelines.doctor.memory import check_gpu_memory, check_memory
from pipelines.doctor.sizes import TrainingSizes, training_sizes
from pipelines.doctor.versions import check_versions
from stages.ray_tools.gpus import gpu_needs
from tests.support.hub_cache import use_hub_cache
from tests.support.tiny_models import write_sd

NUMPY = metadata.version("numpy")
GB = 10**9


def project(folder: Path, lock: str, *, python: str = ">=3.11", needed: str = '"numpy"') -> Path:
    (folder / "pyproject.toml").write_text(f'[project]\nrequires-python = "{python}"\ndependencies = [{needed}]\n')
    (folder / "requirements.lock").write_text(lock)
    return folder


@pytest.mark.parametrize(
    ("lock", "level", "words"),
    [
        (f"numpy=={NUMPY}\n", Level.GOOD, "requirements.lock: 1"),
        (f"# a comment\nnumpy=={NUMPY}  # why\n\n", Level.GOOD, "requirements.lock: 1"),
        ("numpy==0.0.1\n", Level.WARNING, f"numpy {NUMPY} (==0.0.1)"),
        (f"numpy=={NUMPY}\nno-such-package==1\n", Level.WARNING, "no-such-package of requirements.lock is missing"),
        (f"numpy=={NUMPY}\nno-such-package==1; sys_platform == 'plan9'\n", Level.GOOD, "requirements.lock: 1"),
    ],
    ids=["same", "comments", "another", "missing", "of another platform"],
)
def test_packages(lock: str, level: Level, words: str, tmp_path: Path) -> None:
    python, *found = check_versions(project(tmp_path, lock))
    assert python.level is Level.GOOD
    assert [finding.level for finding in found] == [level]
    assert words in found[0].text


def test_a_package_that_the_code_imports_is_a_problem(tmp_path: Path) -> None:
    root = project(tmp_path, "no-such-package==1\n", python=">=4", needed='"No_Such.Package>=1"')
    assert [finding.level for finding in check_versions(root)] == [Level.PROBLEM, Level.PROBLEM]


def test_the_build_of_a_package_is_no_other_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cu128")
    findings = list(check_versions(project(tmp_path, "torch==2.13.0\n", needed='"torch"')))
    assert {finding.level for finding in findings} == {Level.GOOD}


def test_a_project_without_its_lock_is_unknown(tmp_path: Path) -> None:
    assert [finding.level for finding in check_versions(tmp_path)] == [Level.UNKNOWN]


@pytest.mark.parametrize(
    ("profile", "count", "level", "words"),
    [
        ("sd15", 8, Level.GOOD, "GPUs: 8"),
        ("sd15_one_gpu", 1, Level.GOOD, "GPUs: 1"),
        ("sd15", 4, Level.PROBLEM, "compute.workers to at most 4"),
        ("sd15", 0, Level.PROBLEM, "compute.use_gpu=false"),
    ],
)
def test_the_number_of_gpus(profile: str, count: int, level: Level, words: str) -> None:
    setup = Setup.of(load_config(profile))
    found = list(check_gpu_count(gpu_needs(setup.config, setup.graph.order), count))
    assert {finding.level for finding in found} == {level}
    assert len(found) == len({finding.text for finding in found})
    assert words in found[0].text


def test_no_gpu_is_looked_for_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for settings in ([], ["compute.precision=bf16"]):
        (finding,) = check_gpus(Setup.of(load_config("micro", settings)))
        assert finding.level is Level.GOOD
    assert uses_bf16(load_config("micro", ["compute.precision=bf16"]))
    assert not uses_bf16(load_config("micro"))


SIZES = TrainingSizes(unet=860, vae=84, text=123, encoders=730, adapter=100)


@pytest.mark.parametrize(
    ("is_half", "zero_stage", "workers", "trained"),
    [(True, 0, 8, 1600), (True, 1, 8, 900), (True, 2, 8, 550), (True, 3, 8, 200), (True, 2, 1, 1600)],
)
def test_zero_shares_out_what_is_trained(is_half: bool, zero_stage: int, workers: int, trained: int) -> None:
    frozen = 2 * (860 + 123 + 730) + 4 * 84
    assert SIZES.bytes_of_worker(is_half=is_half, zero_stage=zero_stage, workers=workers) == frozen + trained
    assert SIZES.bytes_of_worker(is_half=False, zero_stage=zero_stage, workers=workers) == (
        frozen + 2 * (860 + 123 + 730) + trained
    )


def test_the_machines_memory_holds_what_is_not_on_the_gpu_yet() -> None:
    assert SIZES.bytes_while_loading(is_half=False) == 4 * (860 + 84 + 123)
    assert SIZES.bytes_while_loading(is_half=True) == 4 * 860
    assert replace(SIZES, adapter=2000).bytes_while_loading(is_half=True) == 4 * 2000


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "sd")
    settings = [
        f"backbone.weights={folder}",
        "backbone.image_encoders=[clip]",
        "backbone.shallow_layers=[[0]]",
        "evaluate.similarity=clip",
    ]
    config = load_config("micro", settings)
    sizes = training_sizes(config)
    backbone = load_backbone(folder)
    assert sizes is not None
    assert sizes.unet == sum(weight.numel() for weight in backbone.unet.parameters())
    assert sizes.vae == sum(weight.numel() for weight in backbone.vae.parameters())
    assert sizes.adapter == sum(
        weight.numel() for weight in METHODS["realcustom++"].new_adapter(backbone.unet, 16).parameters()
    )
    levels = [finding.level for finding in memory.check(Setup.of(config))]
    assert levels == [Level.GOOD, Level.GOOD]


def test_a_training_on_cached_encodings_holds_neither_vae_nor_text_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def remember(needed: int, smallest: int | None) -> list[Finding]:
        held.append(needed)
        return []

    monkeypatch.setattr(memory, "check_gpu_memory", remember)
    monkeypatch.setattr(memory, "training_sizes", lambda config: SIZES)
    folder, cached = write_sd(tmp_path / "sd"), ["cache_latents.enabled=true", "train_adapter.sample_every=null"]
    for settings in ([], cached[:1], cached):
        list(memory.check(Setup.of(load_config("sd15", [f"backbone.weights={folder}", *settings]))))
    assert held[0] == held[1] == held[2] + 4 * SIZES.vae + 2 * SIZES.text


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_the_sizes_of_a_damaged_model_are_not_known(text: str, tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "sd")
    settings = [f"backbone.weights={folder}", "backbone.image_encoders=[clip]", "backbone.shallow_layers=[[0]]"]
    (folder / "clip" / "config.json").write_text(text)
    assert training_sizes(load_config("micro", [*settings, "evaluate.similarity=clip"])) is None


@pytest.mark.parametrize(
    ("needed", "total", "level"),
    [(10 * GB, 24 * GB, Level.GOOD), (20 * GB, 24 * GB, Level.WARNING), (25 * GB, 24 * GB, Level.PROBLEM)],
)
def test_memory(needed: int, total: int, level: Level) -> None:
    assert check_memory(needed, 2, total, "to load").level is level


@pytest.mark.parametrize(
    ("needed", "smallest", "level"),
    [
        (7 * GB, 12 * GB, Level.GOOD),
        (17 * GB, 22 * GB, Level.WARNING),
        (17 * GB, 12 * GB, Level.PROBLEM),
        (17 * GB, None, Level.UNKNOWN),
    ],
)
def test_memory_of_a_gpu(needed: int, smallest: int | None, level: Level) -> None:
    assert [finding.level for finding in check_gpu_memory(needed, smallest)] == [level]


@pytest.mark.parametrize(
    ("free", "level"), [(200 * GB, Level.GOOD), (110 * GB, Level.WARNING), (99 * GB, Level.PROBLEM)]
)
def test_room_on_a_disk(free: int, level: Level) -> None:
    assert check_room("a disk", 100 * GB, free, "pictures").level is level


def test_the_disk_holds_captioned_pictures_twice(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"1" * 5000)
    without, _ = run_bytes(Setup.of(load_config("micro")))
    needed, parts = run_bytes(Setup.of(load_config("micro", [f"filter.pictures_folder={tmp_path}"])))
    assert needed == without + 10000
    assert "captioned pictures" in parts


@pytest.mark.parametrize("source", ["owner/set", "s3://bucket/set"])
def test_what_is_not_on_this_machine_comes_on_top(source: str) -> None:
    _, parts = run_bytes(Setup.of(load_config("sd15", [f"filter.pictures_folder={source}"])))
    assert parts.endswith("; the pictures of filter.pictures_folder and the frames of multiview.folders on top")


@pytest.mark.parametrize(("size", "each"), [(100, 3500), (5000, 150_000)])
def test_pictures_from_the_web_need_no_more_than_they_have(size: int, each: int, tmp_path: Path) -> None:
    pq.write_table(pa.table({"URL": ["a"] * 10, "TEXT": ["b"] * 10}), tmp_path / "0.parquet")
    settings = [f"ingest.metadata={tmp_path}", f"ingest.image_size={size}"]
    needed, parts = run_bytes(Setup.of(load_config("micro", settings)))
    assert needed == run_bytes(Setup.of(load_config("micro")))[0] + 2 * 10 * each
    assert "10 pictures" in parts


def test_a_model_that_two_settings_name_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub_cache(monkeypatch, tmp_path)
    *_, finding = disk.check(Setup.of(load_config("sd15", [f"run.folder={tmp_path}/run"])))
    assert "up to 30.0 GB for 5 models" in finding.text


def of_folder(place: str) -> list[Finding]:
    return list(disk.check(Setup.of(load_config("micro", [f"run.folder={place}"]))))


def test_a_run_folder_that_is_not_there_yet_can_be_made(tmp_path: Path) -> None:
    assert [finding.level for finding in of_folder(f"{tmp_path}/a/b")] == [Level.GOOD]
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for place in ("run", "run/below"):
        (finding,) = of_folder(f"{tmp_path}/{place}")
        assert finding.level is Level.PROBLEM
        assert "file, not a folder" in finding.text


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_run_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    (finding,) = of_folder(f"{tmp_path}/run")
    tmp_path.chmod(0o700)
    assert "permission" in finding.text


def test_a_store_is_asked_and_not_written_to(bucket: str) -> None:
    (finding,) = of_folder(f"{bucket}/run")
    assert finding.level is Level.GOOD
    (finding,) = of_folder("s3://no-such-bucket/run")
    assert finding.level is Level.PROBLEM
    assert "there is no such bucket" in finding.text
