"""A small SDXL in buckets and two phases, through the trainer's loop: interrupted where the resolution changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from model.guidance.settings import InferenceSettings
from model.training.adapter_examples import PlanRow
from model.training.adapter_previews import PreviewSubject
from model.training.adapter_task import AdapterTask
from model.training.curriculum import Recipe
from model.training.target_sizes import TargetSizes, phases_of
from stages.curriculum.stage import plan_steps
from stages.storage import write_whole
from stages.training.config import TrainerConfig
from stages.training.job import TrainingJob
from stages.training.loop import run_worker
from tests.support.contexts import on_disk
from tests.support.tiny_examples import picture
from tests.support.tiny_models import ENCODERS, write_sdxl

pytestmark = pytest.mark.slow

STEPS, BORDER, BATCH = 6, 3, 2
SIZES = TargetSizes(phases=phases_of(STEPS, 32, 16, 0.5), bucket_multiple=8)
CONFIG = TrainerConfig(workers=1, learning_rate=1e-2, warmup_steps=1, checkpoint_every=100)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sdxl(tmp_path_factory.mktemp("sdxl"))


@dataclass(frozen=True)
class Plan:
    """Rows of pictures of 32 x 32 and 32 x 48 pixels, other ones in each step.

    A picture that was seen before is not encoded again, and after a resume together with others: to rounding the same.
    """

    def __call__(self, step: int) -> Sequence[PlanRow]:
        sizes = {"height": [32, 32], "width": [32, 48]}
        samples = {"sample_id": [f"a{step}", f"wide{step}"], "caption": [f"a cat {step}", f"in {step}"], **sizes}
        originals = {f"original_{name}": values for name, values in sizes.items()}
        frames = {"reference_frame_id": ["wide", "b"], "target_frame_id": [f"wide-{step}", f"c{step}"]}
        pairs = {**frames, "category": [f"cat {step}", f"cat in {step}"], **sizes}
        recipe = Recipe(steps=STEPS, batch_size=BATCH, r_min=1.0, r_max=2.0)
        table = plan_steps([step], pa.table(samples | originals), pa.table(pairs), recipe, SIZES, seed=5)
        return [PlanRow(**row) for row in table.select(list(PlanRow._fields)).to_pylist()]


@dataclass(kw_only=True)
class StoppedTask(AdapterTask):
    """Asks the trainer to stop after a step."""

    stop_after: int | None = field(default=None, compare=False)
    request: Path | None = field(default=None, compare=False)

    def after_step(self, module: nn.Module, step: int) -> None:
        if step + 1 == self.stop_after and self.request is not None:
            write_whole(self.request, b"")


def make_job(folder: Path, backbone: Path, stop_after: int | None = None) -> TrainingJob:
    folder.mkdir(exist_ok=True)
    subjects = [PreviewSubject(reference=picture("a"), word="cat", prompt="a cat in")]
    task = StoppedTask(
        backbone=str(backbone),
        encoders=ENCODERS,
        rows=Plan(),
        picture=picture,
        phases=SIZES.phases,
        drop_text=0.0,
        drop_image=0.3,
        drop_both=0.0,
        seed=1,
        preview_subjects=subjects,
        preview_settings=InferenceSettings(steps=2, mask_steps=1),
        sample_every=BORDER,
        stop_after=stop_after,
    )
    job = TrainingJob(task=task, steps=STEPS, config=CONFIG, seed=3, cores=1, folder=folder, name="adapter")
    return dataclasses.replace(job, task=dataclasses.replace(task, request=on_disk(job.stop_request)))


def trained(job: TrainingJob) -> dict[str, Tensor]:
    run_worker(job, torch.device("cpu"))
    assert not job.ending.exists()
    return load_file(next(on_disk(job.weights).glob("*.safetensors")))


@pytest.mark.parametrize("stop_after", [BORDER - 1, BORDER, BORDER + 1])
def test_a_training_that_is_interrupted_around_the_border_has_the_same_result(
    stop_after: int, process_group: None, backbone: Path, tmp_path: Path
) -> None:
    whole = make_job(tmp_path / "whole", backbone)
    expected = trained(whole)
    shapes = [tuple(whole.task.batch(step, 0, 1)["latents"].shape[2:]) for step in range(STEPS)]
    areas = [height * width for height, width in shapes]
    assert max(areas[:BORDER]) <= 8 * 8 < min(areas[BORDER:])
    assert len(set(shapes)) > 2
    run_worker(make_job(tmp_path / "parts", backbone, stop_after), torch.device("cpu"))
    rest = make_job(tmp_path / "parts", backbone)
    assert on_disk(rest.ending).read_text().startswith(f"training adapter was stopped after step {stop_after} of 6")
    for file in (rest.ending, rest.stop_request):
        on_disk(file).unlink()
    found = trained(rest)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    sides = []
    for preview in sorted(on_disk(rest.samples).iterdir()):
        with Image.open(preview) as painted:
            sides.append(painted.size)
    assert sides == [(16, 16), (32, 32)]
