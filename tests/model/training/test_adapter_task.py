"""The adapter's training problem on tiny backbones, against plain statements of its equations."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.adapters.adaptive_scoring import ScoreFusion
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import Backbone, PromptEmbedding
from model.errors import BackboneError
from model.methods.names import MethodName
from model.methods.registry import load_adapter
from model.pictures.crops import crop_reference, square_crop
from model.pictures.decoding import PictureError, load_picture
from model.pictures.tensors import to_tensor
from model.training.adapter_task import GAIN_EVERY
from model.training.target_sizes import Phase
from tests.support.adapter_tasks import example, make_task, randomize_values
from tests.support.tiny_examples import BATCH, picture, rows
from tests.support.tiny_models import RESOLUTION

methods = pytest.mark.parametrize("method", ["realcustom++", "realcustom"])


def prompt_of(batch: dict[str, Tensor], backbone: Backbone) -> PromptEmbedding:
    """The caption of all rows, with their targets' sizes for SDXL."""
    encoded = backbone.encode_prompt(["a cat in"] * BATCH)
    sizes = {"time_ids": batch["time_ids"]} if encoded.added_conditions else {}
    return PromptEmbedding(encoded.hidden, encoded.added_conditions | sizes)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch_does_not_depend_on_the_number_of_workers(sd_folder: Path) -> None:
    task = make_task(sd_folder)
    whole = task.batch(3, 0, 1)
    halves = [task.batch(3, rank, 2) for rank in range(2)]
    assert all(torch.equal(half["gamma_num"], whole["gamma_num"]) for half in halves)
    for name in ("latents", "noise", "timesteps", "hidden", "keep_image", "multiview", "crop_ratio"):
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), whole[name])
    assert equal(pickle.loads(pickle.dumps(make_task(sd_folder))).batch(3, 0, 1), whole)
    assert not torch.equal(task.batch(4, 0, 1)["noise"], whole["noise"])
    with pytest.raises(ValueError, match=r"4 examples .* 3 workers"):
        task.batch(0, 0, 3)


@methods
def test_the_noises_of_an_example_share_its_reference_and_cover_the_schedule(
    sd_folder: Path, method: MethodName
) -> None:
    """The loss of M noises is the mean of the losses of M batches, each with one of them."""
    changes = {"drop_text": 0.0, "drop_image": 0.3, "drop_both": 0.0}
    task = make_task(sd_folder, method=method, noises_per_example=3, **changes)
    module, batch = task.module(), task.batch(1, 0, 1)
    with torch.no_grad():
        randomize_values(module)
    assert batch["timesteps"].shape == (BATCH * 3,)
    assert batch["reference"].shape[0] == BATCH
    for timesteps in batch["timesteps"].view(BATCH, 3):
        gaps = timesteps.sort().values.diff()
        assert all(gap in (333, 334) for gap in gaps.tolist())
    losses = []
    for number in range(3):
        single = {name: tensor[number::3] if len(tensor) == BATCH * 3 else tensor for name, tensor in batch.items()}
        assert single["latents"].shape == single["noise"].shape
        with torch.no_grad():
            losses.append(module(single)["loss"])
    with torch.no_grad():
        torch.testing.assert_close(module(batch)["loss"], torch.stack(losses).mean())


def test_references_and_targets_are_cut_as_the_plan_says(sd_folder: Path) -> None:
    task = make_task(sd_folder)
    batch, backbone = task.batch(2, 0, 1), task.load().backbone
    for slot, row in enumerate(rows(2)):
        target = square_crop(load_picture(picture(row.target_id)), row.target_crop_x, row.target_crop_y, RESOLUTION)
        latents = backbone.encode_pictures(to_tensor([target]) * 2 - 1)[0]
        torch.testing.assert_close(batch["latents"][slot], latents, rtol=1e-3, atol=1e-4)
        reference = load_picture(picture(row.reference_id))
        shown = square_crop(reference, row.target_crop_x, row.target_crop_y, min(reference.size))
        cut = crop_reference(shown, row.crop_ratio, row.crop_x, row.crop_y, 32)
        torch.testing.assert_close(batch["reference"][slot], to_tensor(cut))
    # Of the four targets only the wide one moves with its crop: it is encoded again, the others are not.
    task.batch(5, 0, 1)
    assert len(task.load().latents) == BATCH + 1


def test_a_damaged_picture_is_named(sd_folder: Path) -> None:
    task = make_task(sd_folder, rows=lambda step: [rows(step)[0]._replace(reference_id="broken")])
    with pytest.raises(PictureError, match=r"^step 0: picture broken of the plan: "):
        task.batch(0, 0, 1)


def test_pictures_that_latents_do_not_divide_are_refused(sd_folder: Path) -> None:
    task = make_task(sd_folder)
    task.phases = (Phase(0, 32), Phase(3, 33))
    with pytest.raises(BackboneError, match=r"^resolution 33: .* multiples of 2\.$"):
        task.batch(0, 0, 1)


def test_conditions_are_dropped_at_their_rates(sd_folder: Path) -> None:
    task = make_task(sd_folder, drop_text=0.1, drop_image=0.2, drop_both=0.3)
    keep_text, keep_image = task._keep(torch.linspace(0, 0.999, 1000))
    assert ((~keep_text & keep_image).float().mean()).item() == pytest.approx(0.1, abs=0.01)
    assert ((keep_text & ~keep_image).float().mean()).item() == pytest.approx(0.2, abs=0.01)
    assert ((~keep_text & ~keep_image).float().mean()).item() == pytest.approx(0.3, abs=0.01)


def test_a_step_is_described_by_its_pictures(sd_folder: Path) -> None:
    assert make_task(sd_folder).describe(3) == "pictures a, b, wide, c"
    many = make_task(sd_folder, rows=lambda step: [rows(0)[0]._replace(target_id=str(n)) for n in range(20)])
    assert many.describe(0) == f"pictures {', '.join(map(str, range(16)))} and 4 more"


@methods
def test_dropped_conditions_are_the_empty_prompt_and_the_black_picture(method: MethodName, sd_folder: Path) -> None:
    task = make_task(sd_folder, drop_text=0.0, drop_image=0.0, drop_both=1.0, method=method)
    batch, frozen = task.batch(0, 0, 1), task.load()
    torch.testing.assert_close(batch["hidden"], frozen.backbone.encode_prompt([""] * BATCH).hidden)
    assert not batch["keep_image"].any()
    module = task.module()
    with torch.no_grad():
        randomize_values(module)
        loss = module(batch)["loss"]
        other = module({**batch, "reference": torch.rand_like(batch["reference"])})["loss"]
    torch.testing.assert_close(loss, other)


def test_no_prompt_is_for_sdxl_what_its_inference_has(sdxl_folder: Path) -> None:
    """Zeros in training and for the unconditional prediction, because the backbone's index does not say otherwise."""
    task = make_task(sdxl_folder, drop_text=1.0, drop_image=0.0, drop_both=0.0)
    batch, backbone = task.batch(0, 0, 1), task.load().backbone
    negative = backbone.encode_negative_prompt(None, BATCH)
    assert torch.equal(batch["hidden"], negative.hidden)
    assert torch.equal(batch["text_embeds"], negative.added_conditions["text_embeds"])
    assert not batch["hidden"].any()
    backbone.zero_empty_prompt = False
    encoded = make_task(sdxl_folder, drop_text=1.0, drop_image=0.0, drop_both=0.0)
    encoded.load().backbone.zero_empty_prompt = False
    torch.testing.assert_close(encoded.batch(0, 0, 1)["hidden"], backbone.encode_prompt([""] * BATCH).hidden)


def test_the_sizes_of_sdxl_follow_the_targets(sdxl_folder: Path) -> None:
    sized = [row._replace(height=16, width=24, original_height=100, original_width=300) for row in rows(0)]
    task = make_task(sdxl_folder, rows=lambda step: sized, noises_per_example=2)
    batch = task.batch(0, 0, 1)
    assert batch["latents"].shape == batch["noise"].shape == (BATCH * 2, 4, 8, 12)
    left = round((48 - 24) * sized[0].target_crop_x)  # 100 x 300 becomes 16 x 48
    assert batch["time_ids"].tolist() == [[100, 300, 0, left, 16, 24]] * (BATCH * 2)
    with torch.no_grad():
        assert torch.isfinite(task.module()(batch)["loss"])


def test_the_noises_of_a_bucket_do_not_depend_on_the_number_of_workers(sdxl_folder: Path) -> None:
    wide = [row._replace(height=24, width=40) for row in rows(3)]
    task = make_task(sdxl_folder, rows=lambda step: wide)
    whole, halves = task.batch(3, 0, 1), [task.batch(3, rank, 2) for rank in range(2)]
    for name in ("latents", "noise", "time_ids", "reference", "timesteps"):
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), whole[name])


@pytest.mark.parametrize("kind", ["sd_folder", "sdxl_folder"])
def test_the_loss_is_the_diffusion_loss(kind: str, request: pytest.FixtureRequest) -> None:
    task = make_task(request.getfixturevalue(kind), drop_text=0.0, drop_image=0.0, drop_both=0.0)
    module, batch = task.module(), task.batch(0, 0, 1)
    with torch.no_grad():
        randomize_values(module)
        scalars = module(batch)
    backbone, encoders = task.load().backbone, task.load().encoders
    alpha = backbone.scheduler.alphas_cumprod[batch["timesteps"]].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * batch["latents"] + (1 - alpha).sqrt() * batch["noise"]
    prompt = prompt_of(batch, backbone)
    condition = module.adapter(encoders.features(batch["reference"]))
    with torch.no_grad():
        predicted = backbone.predict(noisy, batch["timesteps"], prompt, visual=condition)
        alone = backbone.predict(noisy, batch["timesteps"], prompt)
    torch.testing.assert_close(scalars["loss"], F.mse_loss(predicted, batch["noise"]), rtol=1e-3, atol=1e-4)
    expected = F.mse_loss(alone, batch["noise"]) - F.mse_loss(predicted, batch["noise"])
    torch.testing.assert_close(scalars["gain"], expected, rtol=1e-3, atol=1e-4)
    assert "gain" not in module(task.batch(GAIN_EVERY - 1, 0, 1))


@pytest.mark.parametrize("kind", ["sd_folder", "sdxl_folder"])
def test_the_loss_of_realcustom_is_the_diffusion_loss(kind: str, request: pytest.FixtureRequest) -> None:
    """The scores depend on the text and z_t; gamma_num of the step decides how many image tokens are kept."""
    changes = {"drop_text": 0.0, "drop_image": 0.0, "drop_both": 0.0}
    task = make_task(request.getfixturevalue(kind), method="realcustom", **changes)
    module, batch = task.module(), task.batch(0, 0, 1)
    with torch.no_grad():
        randomize_values(module)
        loss = module(batch)["loss"]
    backbone, encoders, gamma_num = task.load().backbone, task.load().encoders, batch["gamma_num"].item()
    assert 0.3 <= gamma_num <= 1
    assert task.batch(1, 0, 1)["gamma_num"].item() != gamma_num
    alpha = backbone.scheduler.alphas_cumprod[batch["timesteps"]]
    noisy = alpha.sqrt().view(-1, 1, 1, 1) * batch["latents"] + (1 - alpha).sqrt().view(-1, 1, 1, 1) * batch["noise"]
    prompt = prompt_of(batch, backbone)
    tokens = encoders.tokens(batch["reference"])
    condition = module.adapter(tokens, prompt.hidden, noisy, alpha, gamma_num)
    assert {key.shape[1] for key, _ in condition.keys_values.values()} == {int(gamma_num * encoders.patches)}
    with torch.no_grad():
        predicted = backbone.predict(noisy, batch["timesteps"], prompt, visual=condition)
    torch.testing.assert_close(loss, F.mse_loss(predicted, batch["noise"]), rtol=1e-3, atol=1e-4)


def test_the_reference_of_realcustom_is_the_target(sd_folder: Path) -> None:
    """The same square, also of a picture that is not square; by the crop ratio a part of it."""
    task = make_task(sd_folder, method="realcustom")
    references = task.batch(2, 0, 1)["reference"]
    for slot, row in enumerate(rows(2)):
        target = square_crop(load_picture(picture(row.target_id)), row.target_crop_x, row.target_crop_y, RESOLUTION)
        part = crop_reference(target, row.crop_ratio, row.crop_x, row.crop_y, 32)
        torch.testing.assert_close(references[slot], to_tensor(part))


def test_curves_by_source_and_timestep(sd_folder: Path) -> None:
    """Each mean against the errors of single examples; groups without examples have no curve."""
    task = make_task(sd_folder)
    module, batch = task.module(), task.batch(1, 0, 1)
    batch["timesteps"] = torch.tensor([10, 249, 250, 999])
    with torch.no_grad():
        randomize_values(module)
        scalars = module(batch)
        errors = [module(example(batch, row))["loss"].item() for row in range(BATCH)]
    assert errors[0] != pytest.approx(errors[1], rel=1e-3)
    expected = {
        "loss": sum(errors) / 4,
        "loss/multiview": (errors[0] + errors[3]) / 2,
        "loss/image_text": (errors[1] + errors[2]) / 2,
        "loss/t_0_250": (errors[0] + errors[1]) / 2,
        "loss/t_250_500": errors[2],
        "loss/t_750_1000": errors[3],
        "multiview_share": 0.5,
        "crop_ratio": (1 + 1.5 + 2 + 2.5) / 4,
    }
    assert {name: value.item() for name, value in scalars.items()} == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        alone = module(example(batch, 3))
    assert alone.keys() == {"loss", "loss/multiview", "loss/t_750_1000", "multiview_share", "crop_ratio"}


def test_the_loss_is_weighted_and_its_curves_are_not(sd_folder: Path) -> None:
    plain, weighted = make_task(sd_folder).module(), make_task(sd_folder, min_snr_gamma=5.0).module()
    weighted.load_state_dict(plain.state_dict())
    batch = make_task(sd_folder).batch(1, 0, 1)
    batch["timesteps"] = torch.tensor([3, 50, 400, 900])
    with torch.no_grad():
        found, expected = weighted(batch), plain(batch)
        errors = [plain(example(batch, row))["loss"].item() for row in range(BATCH)]
    ratios = plain.frozen.backbone.scheduler.alphas_cumprod[batch["timesteps"]].tolist()
    weights = [min(abar / (1 - abar), 5.0) * (1 - abar) / abar for abar in ratios]
    assert weights[0] < 0.1
    assert found["loss"].item() == pytest.approx(
        sum(weight * error for weight, error in zip(weights, errors, strict=True)) / BATCH, rel=1e-4
    )
    for name in expected.keys() - {"loss"}:
        torch.testing.assert_close(found[name], expected[name])


def test_only_the_adapter_learns_and_is_saved(sd_folder: Path, tmp_path: Path) -> None:
    task = make_task(sd_folder, half=torch.bfloat16)
    module = task.module()
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"adapter"}
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            module(task.batch(step, 0, 1))["loss"].backward()
        optimizer.step()
    unet = task.load().backbone.unet
    assert all(parameter.grad is None for parameter in unet.parameters())
    task.export(module, tmp_path)
    loaded = RealCustomPlusAdapter.from_pretrained(tmp_path)
    assert loaded.usage is not None
    assert loaded.usage.image_encoders == task.encoders
    assert (loaded.usage.inference, loaded.usage.base_model) == (task.preview_settings, None)
    assert all(torch.equal(tensor, module.adapter.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert any(linear.weight.abs().sum() > 0 for linear in loaded.to_v_vision.values())


@pytest.mark.parametrize("kind", ["sd_folder", "sdxl_folder"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_changes_no_more_than_its_rounding(
    kind: str, half: torch.dtype, request: pytest.FixtureRequest
) -> None:
    """Halved encoders give the latents, texts, features and losses of whole ones, within 8 or 11 bits."""
    folder, tolerance = request.getfixturevalue(kind), {torch.bfloat16: 0.02, torch.float16: 0.003}[half]
    whole, halved = make_task(folder), make_task(folder, half=half)
    batches = whole.batch(1, 0, 1), halved.batch(1, 0, 1)
    modules = whole.module(), halved.module()
    modules[1].load_state_dict(modules[0].state_dict())
    with torch.no_grad():
        losses = [modules[0](batches[0])["loss"]]
        with torch.autocast("cpu", half):
            losses.append(modules[1](batches[1])["loss"])
            features = [task.load().encoders.features(batches[0]["reference"]) for task in (whole, halved)]
    pairs = [
        (batches[1][name], batches[0][name]) for name in ("latents", "hidden", "text_embeds") if name in batches[0]
    ]
    for found, expected in [*pairs, *((getattr(features[1], n), getattr(features[0], n)) for n in ("deep", "high"))]:
        assert (found.float() - expected).norm() < tolerance * expected.norm()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=tolerance)
    frozen = halved.load()
    clip: Any = frozen.encoders.towers[0].model
    assert clip.encoder.layers[0].mlp.fc1.weight.dtype == half
    assert frozen.backbone.text_encoders[0].encoder.layers[0].mlp.fc1.weight.dtype == half


def test_an_ablation_of_the_projector_is_trained_and_saved(sd_folder: Path, tmp_path: Path) -> None:
    task = make_task(sd_folder, cross_layer="add", cross_scale="concat")
    module = task.module()
    with torch.no_grad():
        randomize_values(module)
    module(task.batch(1, 0, 1))["loss"].backward()
    assert isinstance(module.adapter, RealCustomPlusAdapter)
    assert all(parameter.grad is not None for parameter in module.adapter.projector.parameters())
    task.export(module, tmp_path)
    config = RealCustomPlusAdapter.from_pretrained(tmp_path).config
    assert (config["cross_layer"], config["cross_scale"]) == ("add", "concat")


def test_a_projector_without_tiles_has_none_encoded(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(sd_folder, cross_scale=None, drop_text=0.0, drop_image=0.5, drop_both=0.0)
    module, batch = task.module(), task.batch(1, 0, 1)
    with torch.no_grad():
        randomize_values(module)
        loss = module(batch)["loss"]
        encoders, keep = task.load().encoders, batch["keep_image"]
        whole = encoders.features_or_black(batch["reference"], keep)
        monkeypatch.setattr(encoders, "features_or_black", lambda *_, **__: whole)
        torch.testing.assert_close(module(batch)["loss"], loss)
    monkeypatch.undo()
    monkeypatch.setattr(encoders, "_high_views", None)
    assert encoders.features_or_black(batch["reference"], keep, tiled=False).high.shape == (BATCH, 0, encoders.width)


@pytest.mark.parametrize("score_fusion", ["scheduled", "textual", None])
def test_an_ablation_of_the_scores_is_trained_and_saved(
    score_fusion: ScoreFusion | None, sd_folder: Path, tmp_path: Path
) -> None:
    task = make_task(sd_folder, method="realcustom", score_fusion=score_fusion, half=torch.bfloat16)
    module = task.module()
    with torch.no_grad():
        randomize_values(module)
    with torch.autocast("cpu", torch.bfloat16):
        module(task.batch(1, 0, 1))["loss"].backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    task.export(module, tmp_path)
    loaded = load_adapter(tmp_path)
    assert isinstance(loaded, RealCustomAdapter)
    assert loaded.config["score_fusion"] == score_fusion
    assert all(torch.equal(tensor, module.adapter.state_dict()[name]) for name, tensor in loaded.state_dict().items())
