"""The profiles for Stable Diffusion: every value is theirs, and micro's is nowhere by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config import loading
from pipelines.config.keys import configuration_keys
from pipelines.config.loading import extended_profile, load_config, profile_names, profile_values
from pipelines.errors import UsageError
from stages.compute_config import FOLLOWERS

#: Sections of stages that only the micro world has.
MICRO_SECTIONS = ("microworld", "base")

#: Settings whose default is right at any size: a new setting is set in sd15.yaml, or listed here for a reason.
SCALE_FREE = """
# What is run, and where: for the user to say.
run: seed cpus tracking_uri
backbone: adapter
compute: min_workers
prompts: endpoint model answers_folder token_budget requests_per_minute tokens_per_minute
ingest: url_column caption_column allow_private_addresses retry
multiview: pairs_per_category
customize: method prompts placeholders pictures joint full prior_folder lora_rank
evaluate: prompts
register: promote
# The papers' own values, which are the defaults.
inference: gamma_num image_guidance_scale mask_every mask_self_downscales mask_binary
inference: visual_scale sampler mask_normalization
curriculum: multiview_probability min_crop_ratio crops
train_adapter: method cross_layer cross_scale score_fusion drop_text drop_image drop_both
contextualizer: layers mask_rate
customize: mlm context_before context_after prior_weight
# Half of the steps: the authors do not say how long their first phase is.
curriculum: first_share
# Limits of pictures, captions and requests that hold for any picture from the web.
ingest: max_aspect_ratio timeout_seconds total_seconds max_bytes max_pixels retries
ingest: max_failed_share min_similarity max_unsafe max_watermark min_aesthetic languages
filter: pictures_folder picture_column caption_column min_pixels max_aspect_ratio
filter: min_caption_words max_caption_characters
filter: languages min_contrast drop_duplicates scoring.aesthetic_head scoring.gpus_per_actor
filter: scoring.batch_size
multiview: min_angle_degrees max_angle_degrees pairs_per_instance min_foreground
prompts: quotas.background quotas.subject quotas.action quotas.style quotas.property
prompts: tailored_concepts tailored_prompts captions max_similarity temperature
prompts: prompts_per_request answer_tokens timeout_seconds retries concurrency
serve: host port allow_anonymous allowed_hosts requests_per_minute concurrent_requests
serve: registry_check_seconds replicas max_replicas max_batch_size max_queued_requests
serve: max_picture_bytes max_picture_pixels max_concepts max_concept_bytes max_steps
serve: safety_checker mark_generated
# The same for any model.
cache_latents: enabled gpus_per_actor
train_adapter: sample_prompts gradient_checkpointing min_snr_gamma
train_adapter.trainer: accumulation final_share gradient_clip ema_decay keep_checkpoints
contextualizer.trainer: optimizer zero_stage accumulation schedule final_share gradient_clip ema_decay
contextualizer.trainer: keep_checkpoints max_failures
customize: flip crop resize gradient_checkpointing prior_pictures scoring.seeds
customize.trainer: optimizer zero_stage accumulation final_share weight_decay gradient_clip
customize.trainer: ema_decay keep_checkpoints max_failures
# Only the micro world has a judge for these.
evaluate: pairs mask_subjects mask_scenes
# Pieces that 80 GB hold.
evaluate: batch_size
"""
LISTED = {
    f"{section}.{name}"
    for section, _, names in (line.partition(":") for line in SCALE_FREE.splitlines() if line[:1] not in "#")
    for name in names.split()
}
FOLLOWING = {name for names in FOLLOWERS.values() for name in names}


@pytest.mark.parametrize("profile", ["sd15", "sdxl"])
def test_no_value_is_the_micro_worlds_by_accident(profile: str) -> None:
    own = set(profile_values(profile))
    asked = {key for key in configuration_keys() if key.partition(".")[0] not in MICRO_SECTIONS}
    assert asked - own - FOLLOWING - LISTED == set()


def test_what_is_listed_as_right_at_any_size_is_a_setting_that_sd15_has_not_set() -> None:
    assert set(configuration_keys()) >= LISTED
    assert LISTED & set(profile_values("sd15")) == set()


def test_a_profile_has_the_values_of_the_one_that_it_extends() -> None:
    assert {name: extended_profile(name) for name in profile_names()} == {
        "micro": None,
        "sd15": None,
        "sd15_one_gpu": "sd15",
        "sdxl": "sd15",
        "sdxl_one_gpu": "sdxl",
    }
    sd15, sdxl = profile_values("sd15"), profile_values("sdxl")
    assert sdxl["curriculum.steps"] == sd15["curriculum.steps"] == 160_000
    assert (sdxl["backbone.resolution"], sd15["backbone.resolution"]) == (1024, 512)


@pytest.mark.parametrize("profile", ["sd15_one_gpu", "sdxl_one_gpu"])
def test_one_gpu_is_enough(profile: str) -> None:
    config = load_config(profile)
    trainers = (config.train_adapter.trainer, config.contextualizer.trainer, config.customize.trainer)
    assert {trainer.workers for trainer in trainers} == {1}
    assert config.evaluate.workers == config.cache_latents.actors == 1
    assert config.filter.scoring.actors * config.filter.scoring.gpus_per_actor <= 1
    assert config.curriculum == load_config(str(extended_profile(profile))).curriculum


@pytest.mark.parametrize(("profile", "downscales", "guidance"), [("sd15", [1, 2, 4, 8], 7.5), ("sdxl", [1, 2], 7.5)])
def test_realcustom_comes_with_its_papers_settings(profile: str, downscales: list[int], guidance: float) -> None:
    config = load_config(profile, ["train_adapter.method=realcustom"])
    assert config.inference.mask_cross_downscales == downscales
    assert (config.inference.guidance_scale, config.inference.image_guidance_scale) == (guidance, 12.5)
    assert config.inference.mask_scope == 0.25
    assert config.train_adapter.trainer.learning_rate == 1e-5
    assert config.backbone.image_encoders == ["openai/clip-vit-large-patch14"]
    assert config.curriculum.multiview_probability == 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "extends: b\n"}, ["a.yaml", "extends", "'b'"]),
        ({"a": "extends: a\n"}, ["a.yaml", "extends", "'a'"]),
        ({"a": "extends: b\n", "b": "extends: a\n"}, ["b.yaml", "extends", "'a'"]),
        ({"a": "extends: b\n", "b": "filter: {min_sides: 1}\n"}, ["b.yaml", "filter.min_sides"]),
        ({"a": "extends: b\n", "b": "filter: {min_side: 1\n"}, ["b.yaml", "not YAML"]),
    ],
    ids=["none", "itself", "each other", "a wrong key there", "no YAML there"],
)
def test_a_wrong_profile_is_named(
    files: dict[str, str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(loading, "PROFILES", tmp_path)
    with pytest.raises(UsageError) as caught:
        load_config("a")
    assert all(word in str(caught.value) for word in words), caught.value
