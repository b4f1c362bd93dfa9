"""Latents and text states computed before the training: the same training, and no other backbone's or plan's."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from model.backbone import load_backbone
from model.training.adapter_task import AdapterTask
from model.training.encodings import EncodingCacheError, encode_captions
from stages.cache_latents import stage as cache_latents
from stages.cache_latents.stage import Encoder, make_job, parts_of, run, write_examples
from stages.contract import StageContext, StageError
from stages.data.datasets import dataset_files, write_dataset
from stages.data.encodings import StoredEncodings, distinct_captions, distinct_targets, encoding_rows
from stages.data.plan import PlanPictures, PlanReader
from stages.data.schemas import PLAN, SAMPLES
from stages.storage import StorePath, parquet_source
from stages.train_adapter.stage import adapter_task
from stages.train_adapter.stage import run as train
from tests.support.contexts import make_context, on_disk
from tests.support.random_backbone import write_random_backbone
from tests.support.tiny_models import RESOLUTION, write_sdxl
from tests.support.tiny_plan import BATCH, STEPS, encoded_picture, filled, plan_row, write_tiny_plan

WORDS = ("mug", "duck", "mug", "boot")


def wide_picture() -> bytes:
    pixels = np.random.default_rng(9).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def row(step: int, slot: int) -> dict[str, Any]:
    """`sample-1`, which is not square, has its crop at another place in every step."""
    return plan_row(step, slot) | {"caption": f"a photo of a {WORDS[slot]}", "target_crop_x": step / STEPS}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_plan(folder)
    samples: list[dict[str, Any]] = [{"sample_id": f"sample-{n}", "picture": encoded_picture(n)} for n in range(BATCH)]
    samples[1] |= {"picture": wide_picture(), "width": 96}
    write_dataset(folder / "filter" / "samples", filled(SAMPLES, samples), SAMPLES)
    plan = [row(step, slot) for step in range(STEPS) for slot in range(BATCH)]
    write_dataset(folder / "curriculum" / "plan", filled(PLAN, plan), PLAN, order=("step", "slot"))
    write_random_backbone(folder / "base" / "backbone")
    return {name: folder / name for name in ("filter", "multiview", "curriculum", "base")}


def plan_of(inputs: Mapping[str, StorePath]) -> PlanReader:
    return PlanReader(inputs["curriculum"] / "plan")


def encode_here(context: StageContext) -> StorePath:
    """The stage's output, made in this process."""
    job = make_job(context)
    encoder = Encoder(job)
    for part in parts_of(write_examples(job, plan_of(context.inputs))):
        assert [table["rows"].to_pylist() for table in encoder(pa.Table.from_pylist([part]))] == [[part["rows"]]]
    return job.folder


@pytest.fixture(scope="module")
def cache(inputs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> StorePath:
    return encode_here(make_context(tmp_path_factory.mktemp("cache"), inputs))


def make_task(tmp_path: Path, inputs: Mapping[str, Path], **changes: Any) -> AdapterTask:
    settings = {"sample_every": None, "drop_text": 0.3, **changes}
    own_references = {"multiview_probability": 0.0, "max_crop_ratio": 1.0}  # what RealCustom learns from
    context = make_context(tmp_path, inputs, train_adapter=settings, curriculum=own_references)
    return adapter_task(context, plan_of(inputs))


def losses(task: AdapterTask) -> Iterator[float]:
    """Of some steps of training."""
    torch.manual_seed(0)
    module = task.module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for step in range(STEPS):
        loss = module(task.batch(step, 0, 1))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def test_the_plan_names_every_square_and_caption_once(inputs: Mapping[str, Path]) -> None:
    """Of square pictures the place of the crop does not count; of `sample-1` it does, in the steps that show it."""
    rows = [row(step, slot) for step in range(STEPS) for slot in range(BATCH)]
    expected = {
        (row["target_id"], round(row["target_crop_x"], 6), row["target_crop_y"])
        if row["target_id"] == "sample-1"
        else (row["target_id"], None, None)
        for row in rows
    }
    found = distinct_targets(plan_of(inputs), PlanPictures.of(inputs)).to_pylist()
    rounded = [(found["target_id"], found["target_crop_x"], found["target_crop_y"]) for found in found]
    assert {(key, x if x is None else round(x, 6), y) for key, x, y in rounded} == expected
    assert len(rounded) == len(expected) == 7 + STEPS // 2
    captions = distinct_captions(plan_of(inputs))["caption"].to_pylist()
    assert captions == ["", "a photo of a boot", "a photo of a duck", "a photo of a mug"]


def test_batches_are_those_of_a_training_without_cache(inputs: Mapping[str, Path], cache: Path, tmp_path: Path) -> None:
    plain, cached = make_task(tmp_path, inputs), make_task(tmp_path, {**inputs, "cache_latents": cache})
    for step in range(STEPS):
        expected, found = plain.batch(step, 0, 1), cached.batch(step, 0, 1)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            tolerance = 1e-5 if name in ("latents", "hidden") else 0.0
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=name)
    assert any(not torch.equal(a, b) for a, b in zip(found["latents"], found["latents"].flip(0), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["realcustom++", "realcustom"])
def test_the_losses_are_those_of_a_training_without_cache(
    method: str, inputs: Mapping[str, Path], cache: Path, tmp_path: Path
) -> None:
    plain = list(losses(make_task(tmp_path, inputs, method=method)))
    cached = list(losses(make_task(tmp_path, {**inputs, "cache_latents": cache}, method=method)))
    assert cached == pytest.approx(plain, abs=1e-6)


def test_encoders_stay_in_memory_only_for_sample_pictures(
    inputs: Mapping[str, Path], cache: Path, tmp_path: Path
) -> None:
    with_cache = {**inputs, "cache_latents": cache}
    for task, place in (
        (make_task(tmp_path, with_cache), "meta"),
        (make_task(tmp_path, with_cache, sample_every=2), "cpu"),
        (make_task(tmp_path, inputs), "cpu"),
    ):
        backbone = task.load().backbone
        modules = (backbone.vae, *backbone.text_encoders)
        assert {weight.device.type for module in modules for weight in module.parameters()} == {place}
        assert backbone.device.type == "cpu"


def test_a_training_in_half_precision_reads_what_whole_encoders_made(
    inputs: Mapping[str, Path], cache: Path, tmp_path: Path
) -> None:
    """The cache is compared with the encoders' weights as they are stored, not as this training rounds them."""
    task = make_task(tmp_path, {**inputs, "cache_latents": cache}, trainer={"precision": "bf16"}, sample_every=3)
    assert task.half == torch.bfloat16
    module = task.module()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(module(task.batch(0, 0, 1))["loss"])


def test_half_precision_takes_half_the_room(inputs: Mapping[str, Path], cache: StorePath, tmp_path: Path) -> None:
    half = encode_here(make_context(tmp_path, inputs, cache_latents={"dtype": "float16", "batch_size": 3}))
    rows = plan_of(inputs)(0)
    folders: list[StorePath] = [cache, half]
    latents = [StoredEncodings.of(folder).latents(rows) for folder in folders]
    assert {tensor.dtype for tensor in latents} == {torch.float32}
    torch.testing.assert_close(latents[1], latents[0], rtol=2**-11, atol=1e-6)
    assert not torch.equal(latents[1], latents[0])
    for dataset in ("latents", "texts"):
        sizes = [sum(len(value) for value in tensors_of(folder / dataset)) for folder in folders]
        assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.03)


def rows_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    """A dataset, read whole."""
    rows = [row for file in dataset_files(folder) for row in pq.read_table(file).to_pylist()]
    return {row["key"]: load(row["tensors"]) for row in rows}


def tensors_of(folder: StorePath) -> list[bytes]:
    return [
        value for file in dataset_files(folder) for value in pq.read_table(parquet_source(file))["tensors"].to_pylist()
    ]


def test_targets_of_different_sizes_are_cached(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    """Steps of squares and of buckets, of one picture too; a size is part of what a latent is found by."""
    sizes = [(64, 64), (32, 64), (64, 96)]
    plan = [
        row(step, slot) | dict(zip(("height", "width"), sizes[step % 3], strict=True))
        for step in range(STEPS)
        for slot in range(BATCH)
    ]
    write_dataset(tmp_path / "curriculum" / "plan", filled(PLAN, plan), PLAN, order=("step", "slot"))
    mixed = {**inputs, "curriculum": tmp_path / "curriculum"}
    cache = on_disk(encode_here(make_context(tmp_path, mixed, cache_latents={"batch_size": 3})))
    plain, cached = make_task(tmp_path, mixed), make_task(tmp_path, {**mixed, "cache_latents": cache})
    for step in range(3):
        height, width = sizes[step]
        latents = cached.batch(step, 0, 1)["latents"]
        assert latents.shape[2:] == (height // 4, width // 4)
        torch.testing.assert_close(latents, plain.batch(step, 0, 1)["latents"], rtol=0, atol=1e-5)


def test_sdxl_has_its_pooled_embedding_and_zeros_for_no_prompt(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    folder = write_sdxl(tmp_path / "sdxl")
    context = make_context(
        tmp_path,
        inputs,
        backbone={"weights": str(folder), "resolution": RESOLUTION},
        cache_latents={"dtype": "float16"},
        evaluate={"similarity": "clip"},
    )
    written = encode_here(context)
    captions = ["a photo of a mug", "", "a photo of a mug"]
    found, expected = StoredEncodings.of(written).texts(captions), encode_captions(load_backbone(folder), captions)
    assert found.keys() == expected.keys() == {"hidden", "text_embeds"}
    assert not found["hidden"][1].any(), "no prompt is zeros"
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2**-10, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("value", "remedy"), [(1e6, "set cache_latents.dtype=float32"), (np.nan, "check the backbone")]
)
def test_values_that_half_precision_cannot_hold_are_refused(value: float, remedy: str) -> None:
    latent = torch.zeros(2, 4, 2, 2)
    latent[1, 0, 0, 0] = value
    expected = rf"^latent of 'b' has values that are not finite in torch\.float16: {remedy}"
    with pytest.raises(EncodingCacheError, match=expected):
        encoding_rows(["a", "b"], {"latent": latent}, torch.float16)


def test_another_backbone_is_refused(inputs: Mapping[str, Path], cache: Path, tmp_path: Path) -> None:
    other = write_random_backbone(tmp_path / "other", seed=1)
    mixed = shutil.copytree(inputs["base"] / "backbone", tmp_path / "mixed")
    shutil.rmtree(mixed / "text_encoder")
    shutil.copytree(other / "text_encoder", mixed / "text_encoder")
    for weights, part in ((other, "VAE"), (mixed, "text encoder")):
        task = make_task(tmp_path, {**inputs, "cache_latents": cache})
        task.backbone = str(weights)
        with pytest.raises(EncodingCacheError, match=rf"was made with another {part} than the backbone's; run the sta"):
            task.module()


def test_another_plan_is_refused(inputs: Mapping[str, Path], cache: Path, tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], str, int]] = [
        ({"caption": "a photo of a bottle"}, "texts", 1),
        ({"target_crop_y": 0.25}, "latents", STEPS // 2),
    ]
    for change, dataset, lost in changes:
        folder = tmp_path / dataset
        plan = [row(step, slot) | (change if slot == 1 else {}) for step in range(STEPS) for slot in range(BATCH)]
        write_dataset(folder / "plan", filled(PLAN, plan), PLAN, order=("step", "slot"))
        with_cache = {**inputs, "curriculum": folder, "cache_latents": cache}
        expected = rf"/{dataset} is of another plan: it lacks {lost} of \d+ rows, such as '.*; run the stage cache_late"
        with pytest.raises(StageError, match=expected):
            train(make_context(tmp_path / "run", with_cache))
        with pytest.raises(EncodingCacheError, match=rf"/{dataset} has no '.*': it is of another plan"):
            make_task(tmp_path, with_cache, drop_text=0.0, drop_image=0.0, drop_both=0.0).batch(0, 0, 1)


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign"])
def test_a_damaged_file_is_named(damage: str, inputs: Mapping[str, Path], cache: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(cache, tmp_path / "cache")
    file = broken / "latents" / "part-00000.parquet"
    data = bytearray(file.read_bytes())
    if damage == "changed":  # one bit of one number
        place = data.index(tensors_of(cache / "latents")[0]) + 200
        data[place] ^= 1
    left = {"truncated": bytes(data[:-50]), "changed": bytes(data), "foreign": b"no Parquet at all"}
    file.write_bytes(left[damage])
    with pytest.raises(EncodingCacheError, match=r"/latents.* is damaged: .*; run the stage cache_latents again"):
        list(losses(make_task(tmp_path, {**inputs, "cache_latents": broken})))


def test_an_interrupted_stage_goes_on(
    inputs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_latents, "_MIN_ROWS_PER_PART", 4)
    folder = encode_here(make_context(tmp_path, inputs))
    files = [*dataset_files(folder / "latents"), *dataset_files(folder / "texts")]
    assert [file.name for file in files] == [f"part-0000{n}.parquet" for n in (0, 1, 2, 0)]
    contents, times = [file.read_bytes() for file in files], [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    files[3].write_bytes(b"half a file")
    assert encode_here(make_context(tmp_path, inputs)) == folder
    assert [file.read_bytes() for file in files] == contents
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True)] == [
        False,
        True,
        True,
        False,
    ]


def test_files_of_another_backbone_are_written_again(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    folder = encode_here(make_context(tmp_path, inputs))
    before = StoredEncodings.of(folder).latents(plan_of(inputs)(0))
    other = write_random_backbone(tmp_path / "other", seed=1)
    encode_here(make_context(tmp_path, inputs, backbone={"weights": str(other)}))
    assert not torch.allclose(StoredEncodings.of(folder).latents(plan_of(inputs)(0)), before)


@pytest.mark.slow
def test_the_stage_writes_what_a_single_process_does(
    ray_cluster: str, inputs: Mapping[str, Path], cache: Path, tmp_path: Path
) -> None:
    events: list[Mapping[str, Any]] = []
    result = run(make_context(tmp_path, inputs, events, cache_latents={"actors": 2}))
    assert result.rows == {"latents": 10, "texts": 4}
    assert result.metrics["examples_per_latent"] == pytest.approx(STEPS * BATCH / 10)
    assert result.metrics["bytes_per_latent"] > 4 * 16 * 16 * 4
    assert events[-1] == {"event": "progress", "done": 14, "total": 14, "note": "encoding targets and captions"}
    for dataset in ("latents", "texts"):
        found, expected = rows_of(tmp_path / "output" / dataset), rows_of(cache / dataset)
        assert found.keys() == expected.keys()
        for key, tensors in expected.items():
            for name, tensor in tensors.items():
                torch.testing.assert_close(found[key][name], tensor, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_actor_s_error_is_one_sentence(ray_cluster: str, inputs: Mapping[str, Path], tmp_path: Path) -> None:
    broken = filled(SAMPLES, [{"sample_id": f"sample-{n}", "picture": b"none"} for n in range(BATCH)])
    write_dataset(tmp_path / "filter" / "samples", broken, SAMPLES)
    with pytest.raises(StageError, match=r"^picture sample-\d of the plan: the picture is not a picture in a format"):
        run(make_context(tmp_path / "run", {**inputs, "filter": tmp_path / "filter"}))
