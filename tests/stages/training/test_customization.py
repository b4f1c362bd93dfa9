"""Customizations on the trainer: a stopped one resumes exactly, and one with other pictures is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from model.concepts.folder import read_concept
from stages.training.config import TrainerConfig
from stages.training.job import TrainingJob
from stages.training.loop import run_worker
from tests.support.contexts import on_disk
from tests.support.customization import make_subject, make_task, picture, write_contextualizer
from tests.support.tiny_models import write_sdxl

pytestmark = pytest.mark.slow

METHODS: dict[str, tuple[int, dict[str, Any]]] = {
    "xti": (0, {"method": "xti", "prompts": "ico"}),
    "dreambooth": (1, {"method": "dreambooth", "prior_weight": 1.0, "flip": 0.5}),
    "custom_diffusion": (2, {"method": "custom_diffusion", "prior_weight": 1.0, "crop": 0.9, "resize": True}),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sdxl(tmp_path_factory.mktemp("sdxl"))


def make_job(backbone: Path, folder: Path, zero_stage: int, settings: dict[str, Any]) -> TrainingJob:
    folder.mkdir()
    task = make_task(backbone, write_contextualizer(backbone, folder / "psi"), **settings)
    config = TrainerConfig(workers=1, zero_stage=zero_stage, checkpoint_every=2, weight_decay=0.0)  # type: ignore[arg-type]
    return TrainingJob(task=task, steps=4, config=config, seed=3, cores=1, folder=folder, name="concept")


@pytest.mark.parametrize(("zero_stage", "settings"), METHODS.values(), ids=METHODS)
def test_a_stopped_customization_resumes_exactly(
    process_group: None, backbone: Path, tmp_path: Path, zero_stage: int, settings: dict[str, Any]
) -> None:
    results = []
    for name in ("whole", "stopped"):
        job = make_job(backbone, tmp_path / name, zero_stage, settings)
        if name == "stopped":
            job.stop_request.touch()
            run_worker(job, torch.device("cpu"))
            assert job.ending.exists()
            job.stop_request.unlink()
            job = dataclasses.replace(job, task=dataclasses.replace(job.task))  # type: ignore[type-var]
        run_worker(job, torch.device("cpu"))
        assert not job.ending.exists()
        results.append(list(read_concept(on_disk(job.weights)).tensors()))
    assert len(results[0]) == len(results[1]) > 0
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_the_pictures_belong_to_a_checkpoint(backbone: Path, tmp_path: Path) -> None:
    job = make_job(backbone, tmp_path / "a", 0, {"method": "xti"})
    same, other = (
        dataclasses.replace(job.task, subjects=(subject,))  # type: ignore[type-var]
        for subject in (make_subject(), make_subject(pictures=(picture(7),)))
    )
    assert dataclasses.replace(job, task=same).identity() == job.identity()
    differing = {
        key for key, value in dataclasses.replace(job, task=other).identity().items() if value != job.identity()[key]
    }
    assert differing == {"task.subjects"}
    changed = dataclasses.replace(job.task, settings=dataclasses.replace(job.task.settings, vectors=2))  # type: ignore
    assert dataclasses.replace(job, task=changed).identity() != job.identity()
