"""The authors' inference with their released weights, against a plain statement of it on small random models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import SiglipVisionConfig

from model.adapters.adapter import AdapterError
from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.release import LOCATIONS
from model.adapters.released_weights import convert_released
from model.backbone import load_backbone
from model.dci.settings import DCISettings
from model.diffusers_pipelines.attachment import attach_adapter
from model.errors import GenerationError, ModelError
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject
from model.methods.release import NEGATIVE_PROMPT
from model.pipeline import RealCustomPipeline
from tests.support import release_statement
from tests.support.released_models import (
    ENCODER_NAMES,
    REFERENCE_SIZE,
    released_state,
    write_release_encoders,
    write_released_adapter,
)
from tests.support.tiny_diffusers_pipelines import build_pipeline
from tests.support.tiny_models import write_sdxl

PROMPT = "a cat in a hat"
SIZE = (44, 60)  # height, width; attention at 11 x 15 and 6 x 8 positions
NEGATIVE = "ugly cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SDXL whose attention is not flat, with the image encoders of the release."""
    folder = write_sdxl(tmp_path_factory.mktemp("release"))
    backbone = load_backbone(folder)
    with torch.no_grad():
        for name, parameter in backbone.unet.named_parameters():
            if name.endswith("to_q.weight"):
                parameter.mul_(8)
    backbone.unet.save_pretrained(folder / "unet")
    return write_release_encoders(folder)


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Imported weights, without and with shallow features."""
    unet, place = load_backbone(folder).unet, tmp_path_factory.mktemp("adapters")
    return {shallow: write_released_adapter(place / f"{shallow}", unet, shallow=shallow) for shallow in (False, True)}


@pytest.fixture(scope="module")
def pipelines(folder: Path, adapters: dict[bool, Path]) -> dict[bool, RealCustomPipeline]:
    return {
        shallow: RealCustomPipeline.from_pretrained(folder, adapter, ENCODER_NAMES)
        for shallow, adapter in adapters.items()
    }


@pytest.fixture(scope="module")
def pipeline(pipelines: dict[bool, RealCustomPipeline]) -> RealCustomPipeline:
    return pipelines[False]


@pytest.fixture(scope="module")
def encoders(folder: Path) -> release_statement.Encoders:
    return release_statement.Encoders(folder)


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def latents_of(pipeline: RealCustomPipeline, noise: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The decoded latents, and the masks."""
    run = pipeline.start(
        PROMPT, picture(), "cat", height=SIZE[0], width=SIZE[1], latents=noise, negative_prompt=NEGATIVE, **options
    )
    while not run.is_finished:
        pipeline.step([run])
    assert run.guidance is not None
    return run.generation.latents, [masks[0, 0] for masks in run.guidance.history]


def noise_of(seed: int = 2) -> Tensor:
    return torch.randn(1, 4, SIZE[0] // 2, SIZE[1] // 2, generator=torch.Generator().manual_seed(seed))


SMALL = {"height": 32, "width": 32}
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "as released": (False, {}),
    "with shallow features": (True, {"steps": 5, "mask_steps": 3}),
    "DDIM": (False, {"steps": 5, "mask_steps": 3, "sampler": "ddim"}),
    "min_max_per_channel": (False, {"steps": 4, "mask_steps": 3, "mask_normalization": "min_max_per_channel"}),
    "other values": (False, {"steps": 4, "mask_steps": 2, "guidance_scale": 7.5, "mask_scope": 0.2}),
}


@pytest.mark.parametrize(("shallow", "changes"), WAYS.values(), ids=list(WAYS))
def test_the_whole_loop_is_that_of_the_statement(
    shallow: bool,
    changes: dict[str, Any],
    folder: Path,
    encoders: release_statement.Encoders,
    pipelines: dict[bool, RealCustomPipeline],
) -> None:
    pipeline = pipelines[shallow]
    settings = replace(pipeline.default_settings, **changes)
    got, masks = latents_of(pipeline, noise_of(), settings=settings if changes else None)
    expected_masks: list[Tensor] = []
    expected = release_statement.final_latents(
        folder,
        encoders,
        released_state(load_backbone(folder).unet, shallow),
        PROMPT,
        pipeline.backbone.token_positions(PROMPT, "cat"),
        picture(),
        noise_of(),
        NEGATIVE,
        steps=settings.steps,
        guidance=settings.guidance_scale,
        scope=settings.mask_scope,
        mask_steps=settings.mask_steps or 0,
        mode=settings.mask_normalization,
        sampler={"dpm": release_statement.dpm, "ddim": release_statement.ddim}[settings.sampler],
        masks=expected_masks,
    )
    assert len(masks) == len(expected_masks) == settings.mask_steps
    torch.testing.assert_close(torch.stack(masks), torch.stack(expected_masks), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_without_masks_both_conditions_act_everywhere(
    folder: Path, encoders: release_statement.Encoders, pipeline: RealCustomPipeline
) -> None:
    settings = replace(pipeline.default_settings, steps=3, mask_steps=1)
    got, masks = latents_of(pipeline, noise_of(), settings=settings, use_mask=False)
    state = released_state(load_backbone(folder).unet, shallow=False)
    given: tuple[Any, ...] = (PROMPT, [], picture(), noise_of(), NEGATIVE)
    expected = release_statement.final_latents(folder, encoders, state, *given, steps=3, use_mask=False)
    assert masks == []
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


SHAPES = {"square": (56, 56), "wide": (90, 30), "tall": (20, 70), "tiny": (3, 2), "large": (200, 151)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@torch.no_grad()
def test_features_are_those_of_the_strided_views_of_the_stretched_reference(
    shape: tuple[int, int], encoders: release_statement.Encoders, pipeline: RealCustomPipeline
) -> None:
    assert pipeline.image_encoders is not None
    features = pipeline.image_encoders.encode([picture(*shape)])
    expected = encoders.features(release_statement.stretched(picture(*shape)))
    for got, one in zip((features.deep, features.shallow, features.high), expected, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-4, atol=1e-4)


def test_the_low_view_is_interpolated_between_aligned_corners(pipeline: RealCustomPipeline) -> None:
    assert pipeline.image_encoders is not None
    square = release_statement.stretched(picture(90, 30))
    side = square.shape[-1]
    places, ends = np.linspace(0, side - 1, REFERENCE_SIZE), np.arange(side)
    low = pipeline.image_encoders._low_view(square)[0].numpy()
    for channel, found in zip(square[0].numpy(), low, strict=True):
        columns = np.array([np.interp(places, ends, row) for row in channel])
        expected = np.array([np.interp(places, ends, column) for column in columns.T]).T
        assert ((expected - found > -1e-5) & (expected - found < 1 / 255 + 1e-5)).all(), "in 8 bits, cut off"


@torch.no_grad()
def test_the_unconditional_features_are_those_of_a_black_picture(
    encoders: release_statement.Encoders, pipeline: RealCustomPipeline
) -> None:
    assert pipeline.image_encoders is not None
    black = pipeline.image_encoders.black(1)
    drawn = pipeline.image_encoders.encode([Image.new("RGB", (50, 20))])
    expected = encoders.features(torch.zeros(1, 3, 2 * REFERENCE_SIZE, 2 * REFERENCE_SIZE))
    for got, same, one in zip(vars(black).values(), vars(drawn).values(), expected, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(same, one, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_text_is_unprojected_with_the_width_first(folder: Path, pipeline: RealCustomPipeline) -> None:
    for text, encoded in (
        (PROMPT, pipeline.backbone.encode_prompt([PROMPT], SIZE)),
        (NEGATIVE_PROMPT, pipeline.backbone.encode_negative_prompt(None, 1, SIZE)),
        (NEGATIVE, pipeline.backbone.encode_negative_prompt(NEGATIVE, 1, SIZE)),
        ("", pipeline.backbone.encode_negative_prompt("", 1, SIZE)),
    ):
        hidden, added = release_statement.text_conditions(folder, text, SIZE[1], SIZE[0])
        torch.testing.assert_close(encoded.hidden, hidden)
        assert encoded.added_conditions.keys() == added.keys()
        for name, expected in added.items():
            torch.testing.assert_close(encoded.added_conditions[name], expected)


def test_the_settings_are_the_authors(pipeline: RealCustomPipeline) -> None:
    assert pipeline.default_settings == InferenceSettings(
        steps=25,
        sampler="dpm",
        guidance_scale=3.5,
        mask_scope=0.25,
        mask_steps=12,
        mask_cross_downscales=[1, 2],
        mask_self_downscales=[],
    )
    for sampler in ("dpm", "ddim"):
        timesteps = pipeline.scheduler_of(replace(pipeline.default_settings, sampler=sampler)).timesteps
        assert timesteps.tolist() == list(range(999, 0, -40))


def test_the_users_choices_win(pipeline: RealCustomPipeline) -> None:
    configured = InferenceSettings(steps=50, guidance_scale=7.5, mask_scope=0.2)  # of a profile, which did not choose
    assert pipeline.settings_over(configured, {}) == pipeline.default_settings
    chosen = pipeline.settings_over(configured, {"guidance_scale": 5.0, "steps": 8})
    assert chosen == replace(pipeline.default_settings, guidance_scale=5.0, steps=8, mask_steps=8)
    with pytest.raises(GenerationError, match="mask_steps is 9, but there are 8 steps"):
        pipeline.settings_over(configured, {"steps": 8, "mask_steps": 9})


def test_a_trained_adapter_keeps_the_papers_inference(folder: Path, tmp_path: Path) -> None:
    unet = load_backbone(folder).unet
    RealCustomPlusAdapter.from_unet(unet, 128).save_pretrained(tmp_path)
    views: dict[str, Any] = {"shallow_layers": [[0], [0]], "reference_size": REFERENCE_SIZE}
    pipeline = RealCustomPipeline.from_pretrained(folder, tmp_path, image_encoders=ENCODER_NAMES, **views)
    assert pipeline.default_settings == InferenceSettings()
    configured = InferenceSettings(guidance_scale=7.5)
    assert pipeline.settings_over(configured, {"guidance_scale": 7.5}) is configured
    assert not pipeline.backbone.released_text
    assert type(pipeline.image_encoders) is ImageEncoders


def test_pictures_painted_together_are_those_painted_alone(pipeline: RealCustomPipeline) -> None:
    """Other prompts, sizes of pictures, numbers of subjects, scopes, scales and steps taken; one without a mask."""
    first, second, third = (picture(seed=seed) for seed in range(3))
    settings = replace(pipeline.default_settings, steps=4, mask_steps=2)
    requests: list[tuple[str, list[Subject], dict[str, Any]]] = [
        ("a cat in a hat", [Subject(picture=first, word="cat")], {}),
        (
            "a cat in a hat",
            [
                Subject(picture=second, word="cat", scope=0.2, scale=0.5),
                Subject(picture=third, word="hat", scope=0.3),
            ],
            {"negative_prompt": "ugly"},
        ),
        ("a toy", [Subject(picture=first)], {"use_mask": False}),
        ("a toy in a hat", [Subject(picture=first, word="toy"), Subject(picture=first, word="hat")], {}),
    ]
    starts = [
        {"prompt": prompt, "subjects": [subjects], "settings": settings, "seeds": number, **SMALL, **options}
        for number, (prompt, subjects, options) in enumerate(requests)
    ]
    alone = [pipeline(**options) for options in starts]
    runs = [pipeline.start(**options) for options in starts]
    pipeline.step(runs[:1])  # the others join a step later
    while running := [run for run in runs if not run.is_finished]:
        pipeline.step(running)
    together = [pipeline.finish(run) for run in runs]
    for one, other in zip(alone, together, strict=True):
        (expected,), (got,) = one.images, other.images
        assert np.abs(np.asarray(expected, int) - np.asarray(got, int)).max() <= 1
    assert max(count for run in runs for count in run.rows_together) > 1


def test_the_subject_and_the_black_rows_change_the_picture(pipeline: RealCustomPipeline) -> None:
    settings = replace(pipeline.default_settings, steps=2, mask_steps=1)
    painted = [
        np.asarray(pipeline(PROMPT, *subject, settings=settings).images[0], int)
        for subject in ((), (picture(), "cat"), (Subject(picture=picture(), word="cat", scale=0.0),))
    ]
    text, subject, none = painted
    assert np.abs(text - none).max() <= 1
    assert np.abs(text - subject).max() > 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, folder: Path, adapters: dict[bool, Path]) -> None:
    pipeline = RealCustomPipeline.from_pretrained(folder, adapters[False], ENCODER_NAMES, dtype=dtype)
    output = pipeline(PROMPT, picture(), "cat", settings=replace(pipeline.default_settings, steps=3, mask_steps=2))
    assert output.timesteps == [999, 666, 332]
    assert len(output.masks[0]) == 2


def test_dci_is_refused_beside_subjects(pipeline: RealCustomPipeline) -> None:
    with pytest.raises(GenerationError, match="DCI cannot run beside subjects of released weights"):
        pipeline(PROMPT, picture(), "cat", dci=DCISettings(concept="a hat"))


def encoders_of(folder: Path, names: list[str], **views: Any) -> dict[str, Any]:
    return {"image_encoders": [str(folder / name) for name in names], **views}


REFUSED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "micro's encoders": (["clip", "dino"], {}, "need SigLIP and DINOv2 with registers, in this order"),
    "the other order": (["dino_with_registers", "siglip"], {}, "in this order, but an encoder is 'dinov2_with_reg"),
    "without registers": (["siglip", "dino"], {}, "but an encoder is 'dinov2'; set backbone.image_encoders"),
    "no encoder": ([], {}, "but there are 0 encoders"),
    "one encoder": (["siglip"], {}, "but there are 1 encoders"),
    "too few blocks": (["shallow_siglip", "dino_with_registers"], {}, "SigLIP's block 25, but this one has 20 blocks"),
    "too wide": (["wide_siglip", "dino_with_registers"], {}, r"width 128, but .* have widths 96 \+ 64 = 160"),
    "other shallow layers": (
        ["siglip", "dino_with_registers"],
        {"shallow_layers": [[1, 2, 3], [1, 2, 3]]},
        r"set backbone\.shallow_layers=\[\[7, 13, 19\], \[4, 10, 16\]\]",
    ),
    "other tiles": (["siglip", "dino_with_registers"], {"tiles": 3}, "tiles 3: released weights need 2"),
    "another size": (["siglip", "dino_with_registers"], {"reference_size": 42}, "set backbone.reference_size=28"),
    "missing": (["siglip", "nowhere"], {}, "image encoder '.*nowhere' cannot be loaded"),
}


@pytest.mark.parametrize(("names", "views", "message"), REFUSED.values(), ids=list(REFUSED))
def test_other_encoders_are_refused_before_the_base_is_loaded(
    names: list[str],
    views: dict[str, Any],
    message: str,
    folder: Path,
    adapters: dict[bool, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _write_other_encoders(folder)
    monkeypatch.setattr("model.pipeline.load_backbone", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ModelError, match=message):
        RealCustomPipeline.from_pretrained(folder, adapters[False], **encoders_of(folder, names, **views))


def _write_other_encoders(folder: Path) -> None:
    for name, changes in {"shallow_siglip": {"num_hidden_layers": 20}, "wide_siglip": {"hidden_size": 96}}.items():
        config = SiglipVisionConfig.from_pretrained(folder / "siglip")
        for key, value in changes.items():
            setattr(config, key, value)
        config.save_pretrained(folder / name)


def test_encoders_of_ones_own_become_those_of_the_release(folder: Path, pipeline: RealCustomPipeline) -> None:
    backbone = load_backbone(folder)
    adapter = convert_released(released_state(backbone.unet, shallow=False), backbone.unet)
    layers = ((7, 13, 19), (4, 10, 16))
    encoders = ImageEncoders.from_pretrained(ENCODER_NAMES, folder, layers, REFERENCE_SIZE, 2)
    own = RealCustomPipeline(backbone, adapter, encoders)
    assert own.image_encoders is not None
    assert pipeline.image_encoders is not None
    got, expected = (one.encode([picture()]).deep for one in (own.image_encoders, pipeline.image_encoders))
    torch.testing.assert_close(got, expected)
    other = ImageEncoders.from_pretrained(ENCODER_NAMES, folder, ((1,), (1,)), REFERENCE_SIZE, 2)
    with pytest.raises(match="shallow_layers"):
        RealCustomPipeline(load_backbone(folder), adapter, other)


def test_the_encoders_of_the_release_are_found_without_being_named(
    folder: Path, adapters: dict[bool, Path], tmp_path: Path
) -> None:
    """As subfolders of a backbone's folder here: other names are looked for on the hub."""
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    for name, location in zip(ENCODER_NAMES, LOCATIONS, strict=True):
        (base / location).parent.mkdir(exist_ok=True)
        (base / name).rename(base / location)
    assert RealCustomPipeline.from_pretrained(base, adapters[False]).default_settings.sampler == "dpm"


def test_stable_diffusion_1_is_refused(sd_folder: Path, folder: Path, adapters: dict[bool, Path]) -> None:
    with pytest.raises(AdapterError, match="are for Stable Diffusion XL"):
        RealCustomPipeline.from_pretrained(sd_folder, adapters[False], **encoders_of(folder, list(ENCODER_NAMES)))


def test_the_configuration_names_the_inference(folder: Path) -> None:
    unet = load_backbone(folder).unet
    assert convert_released(released_state(unet, shallow=True), unet).config["inference"] == "release"
    assert RealCustomPlusAdapter.from_unet(unet, 128).config["inference"] == "paper"
    with pytest.raises(AdapterError, match="inference is 'theirs'; it must be one of paper, release"):
        RealCustomPlusAdapter.from_unet(unet, 128, inference="theirs")


@pytest.mark.parametrize("guidance_scale", [3.5, 1.0])
def test_a_pipeline_of_diffusers_paints_with_features_masks_and_black_rows_of_the_release(
    guidance_scale: float, pipeline: RealCustomPipeline, folder: Path
) -> None:
    """Its text conditions are its own: those of the release differ."""
    own = RealCustomPipeline(pipeline.backbone, pipeline.adapter, pipeline.image_encoders, pipeline.backbone.scheduler)
    own.backbone = replace(own.backbone, released_text=False, negative_prompt=None)
    settings = replace(own.default_settings, steps=4, mask_steps=3, guidance_scale=guidance_scale)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = own("a cat in a hat", picture(), "cat", settings=settings, latents=noise * 1).images[0]
    pipe = build_pipeline("StableDiffusionXLPipeline", folder)
    assert pipeline.adapter is not None
    assert pipeline.image_encoders is not None
    attach_adapter(pipe, pipeline.adapter, pipeline.image_encoders)
    got = pipe(
        "a cat in a hat",
        subjects=picture(),
        words="cat",
        settings=settings,
        latents=noise * 1,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        output_type="np",
    ).images[0]
    np.testing.assert_allclose(got, np.asarray(expected) / 255, atol=0.004)
