from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt

from pipelines.config.keys import flat_values
from pipelines.config.loading import (
    config_from_dict,
    config_to_dict,
    load_config,
    parse_settings,
    profile_names,
    with_method_defaults,
    with_values,
)
from pipelines.config.words import describe
from pipelines.errors import UsageError
from stages.config import Config


def test_micro_is_the_defaults_but_for_its_own_web() -> None:
    config, defaults = load_config("micro"), Config()
    assert config.ingest.allow_private_addresses
    assert not defaults.ingest.allow_private_addresses
    ingest = dataclasses.replace(config.ingest, allow_private_addresses=False)
    assert dataclasses.replace(config, run=defaults.run, ingest=ingest) == defaults
    assert config.run.folder == str(Path("runs/micro").absolute())


def test_every_profile_loads_and_names_itself() -> None:
    assert profile_names() == ["micro", "sd15", "sd15_one_gpu", "sdxl", "sdxl_one_gpu"]
    for name in profile_names():
        config = load_config(name)
        assert config.profile == name
        assert config.run.folder.endswith(f"runs/{name}")


@pytest.mark.parametrize(
    ("profile", "resolution", "steps", "guidance", "mask_steps"),
    [("sd15", 512, 50, 12.5, 25), ("sdxl", 1024, 25, 7.5, 12)],
)
def test_the_papers_settings(profile: str, resolution: int, steps: int, guidance: float, mask_steps: int) -> None:
    config = load_config(profile)
    assert config.backbone.resolution == resolution
    assert (config.inference.steps, config.inference.guidance_scale) == (steps, guidance)
    assert (config.inference.mask_steps, config.inference.mask_scope) == (mask_steps, 0.2)
    assert config.backbone.shallow_layers == [[7, 13, 19], [4, 10, 16]]
    assert config.backbone.reference_size == 384
    assert (config.train_adapter.trainer.learning_rate, config.curriculum.steps) == (1e-4, 160_000)
    assert config.train_adapter.trainer.use_gpu


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("filter.min_aesthetic=6.0", "filter.min_aesthetic", 6.0),
        ("filter.min_aesthetic=6", "filter.min_aesthetic", 6.0),
        ("filter.min_aesthetic=null", "filter.min_aesthetic", None),
        ("filter.min_aesthetic=None", "filter.min_aesthetic", None),
        ("filter.min_side=null", "filter.min_side", None),
        ("filter.drop_duplicates=false", "filter.drop_duplicates", False),
        ("filter.drop_duplicates=no", "filter.drop_duplicates", False),
        ("filter.drop_duplicates=ON", "filter.drop_duplicates", True),
        ("filter.min_side=010", "filter.min_side", 10),
        ("filter.min_side=1_000", "filter.min_side", 1000),
        ("filter.min_side=~", "filter.min_side", None),
        ("filter.min_aesthetic=010", "filter.min_aesthetic", 10.0),
        ("contextualizer.trainer.zero_stage=1", "contextualizer.trainer.zero_stage", 1),
        ("backbone.shallow_layers=[\n  [010]\n]", "backbone.shallow_layers", [[10]]),
        ("curriculum.steps=10", "curriculum.steps", 10),
        ("customize.trainer.learning_rate=1e-4", "customize.trainer.learning_rate", 1e-4),
        ("train_adapter.trainer.workers=1", "train_adapter.trainer.workers", 1),
        ("train_adapter.cross_layer=add", "train_adapter.cross_layer", "add"),
        ("train_adapter.cross_scale=null", "train_adapter.cross_scale", None),
        ("customize.words=[7]", "customize.words", ["7"]),
        ("customize.placeholders=[[v]]", "customize.placeholders", ["[v]"]),
        ("prompts.endpoint=http://127.0.0.1:1/v1?a=b", "prompts.endpoint", "http://127.0.0.1:1/v1?a=b"),
        ("prompts.concepts=[toy, mug]", "prompts.concepts", ["toy", "mug"]),
        ("backbone.shallow_layers=[[1], [2, 3]]", "backbone.shallow_layers", [[1], [2, 3]]),
        ("base.recipe.pool.categories=[mug]", "base.recipe.pool.categories", ("mug",)),
        (" filter.min_side = 3 ", "filter.min_side", 3),
    ],
)
def test_settings_are_typed(setting: str, key: str, value: object) -> None:
    found = parse_settings([setting])
    assert found == {key: value}
    assert type(found[key]) is type(value)


def refused(*settings: str, profile: str = "micro") -> str:
    """The one sentence with which the settings are refused."""
    with pytest.raises(UsageError) as caught:
        load_config(profile, settings)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("filter.min_astetic=6", ["'filter.min_astetic'", "Did you mean 'filter.min_aesthetic'?"]),
        ("min_aesthetic=6", ["'min_aesthetic'", "'ingest.min_aesthetic' or 'filter.min_aesthetic'"]),
        ("backbone.family=sd", ["'backbone.family'"]),
        ("filter.min_aesthetic", ["--set", "key=value", "'filter.min_aesthetic'"]),
        ("filter.min_aesthetic=high", ["filter.min_aesthetic", "a number or null", "'high'"]),
        ("filter.min_side=4.5", ["filter.min_side", "a whole number", "4.5"]),
        ("filter.min_side=true", ["filter.min_side", "a whole number", "'true'"]),
        ("filter.min_side=0x10", ["filter.min_side", "a whole number", "'0x10'"]),
        ("filter.min_side=1:30", ["filter.min_side", "a whole number", "'1:30'"]),
        ('filter.min_side="3"', ["filter.min_side", "a whole number", "'3'"]),
        ("filter.max_unsafe=1:30", ["filter.max_unsafe", "a number", "'1:30'"]),
        ("filter.drop_duplicates=1", ["filter.drop_duplicates", "true or false", "'1'"]),
        ("filter.min_side={a: 1}", ["filter.min_side", "a whole number", "'{a: 1}'"]),
        ("filter.min_side=&a [*a]", ["filter.min_side", "a whole number"]),
        ("backbone.shallow_layers=[[0, no], [0, 1]]", ["backbone.shallow_layers", "a whole number", "'no'"]),
        ("prompts.concepts={mug: 1}", ["prompts.concepts", "a list [..]", "'{mug: 1}'"]),
        ("prompts.concepts=[mug, , toy]", ["prompts.concepts", "not empty", "''"]),
        (
            "evaluate.prompts=[wet, a {word}]",
            ["evaluate.prompts", "'wet'", "quotes keep an item with a comma together"],
        ),
        ("filter.min_side=-1", ["filter.min_side", "from 0", "-1"]),
        ("filter.max_unsafe=1.5", ["filter.max_unsafe", "from 0 to 1", "1.5"]),
        ("filter.max_unsafe=nan", ["filter.max_unsafe", "from 0 to 1", "nan"]),
        ("filter.min_contrast=.inf", ["filter.min_contrast", "a number", "inf"]),
        ("filter.min_side=2001-13-45", ["filter.min_side", "a whole number", "2001-13-45"]),
        ("filter.min_side=" + "9" * 5000, ["filter.min_side", "a whole number", "999..."]),
        ("filter.drop_duplicates=3", ["filter.drop_duplicates", "true or false", "3"]),
        ("curriculum.steps=null", ["curriculum.steps", "a whole number", "None"]),
        ("curriculum.steps=", ["curriculum.steps", "a whole number", "None"]),
        ("curriculum.steps=0", ["curriculum.steps", "from 1", "0"]),
        ("curriculum.steps=[1", ["curriculum.steps", "a whole number", "'[1'"]),
        ("train_adapter.cross_scale=sum", ["train_adapter.cross_scale", "'concat', 'add' or null", "'sum'"]),
        ("prompts.concepts=toy", ["prompts.concepts", "a list [..]", "'toy'"]),
        ("prompts.concepts=[]", ["prompts.concepts", "one or more items", "[]"]),
        ('prompts.concepts=["a\\nb"]', ["prompts.concepts", "text on one line", "a\\nb"]),
        ("backbone.dtype=float99", ["backbone.dtype", "'float32', 'float16', 'bfloat16'", "'float99'"]),
        ("backbone.resolution=70", ["backbone.resolution", "a multiple of 8", "70"]),
        ("backbone.shallow_layers=[[0, -1, 2], [0, 1, 2]]", ["backbone.shallow_layers", "from 0", "-1"]),
        ("evaluate.similarity=foo", ["evaluate.similarity", "'judge', 'clip', 'dino'", "'foo'"]),
        ("evaluate.prompts=[a photo of a mug]", ["evaluate.prompts", "{word}", "a photo of a mug"]),
        ("inference.mask_cross_downscales=[3]", ["inference.mask_cross_downscales", "a power of two", "3"]),
        ("inference.mask_cross_downscales=[]", ["inference.mask_cross_downscales", "one or more", "[]"]),
        ("microworld.port=70000", ["microworld.port", "from 1 to 65535", "70000"]),
        ("register.model_name=a b", ["register.model_name", "letters", "'a b'"]),
        ('customize.words=[""]', ["customize.words", "not empty", "''"]),
        ("customize.placeholders=[a b]", ["customize.placeholders", "without spaces", "'a b'"]),
        ("evaluate.subjects_folder=s3://b", ["evaluate.subjects_folder", "a path", "s3://b"]),
        ("run.folder=~nosuchuser/x", ["run.folder", "~nosuchuser/x"]),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(setting: str, words: list[str]) -> None:
    sentence = refused(setting)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train_adapter.trainer.workers=3"], ["curriculum.batch_size", "8", "workers", "3"]),
        (["train_adapter.trainer.accumulation=32"], ["curriculum.batch_size", "accumulation", "2 x 32"]),
        (["contextualizer.trainer.workers=5"], ["contextualizer", "batch_size", "64", "5"]),
        (["compute.workers=3"], ["curriculum.batch_size", "train_adapter.trainer.workers", "3 x 1", "8"]),
        (["compute.min_workers=3"], ["compute", "min_workers=3", "workers=2"]),
        (["compute.precision=fp16"], ["compute", "fp16", "compute.use_gpu"]),
        (["train_adapter.drop_text=.9", "train_adapter.drop_image=.9"], ["drop_text", "drop_image", "0.9", "at most"]),
        (["microworld.dead_share=.9", "microworld.poor_share=.9"], ["microworld", "dead_share", "1 at most"]),
        (["curriculum.bucket_multiple=24"], ["backbone.resolution", "curriculum.bucket_multiple=24", "64"]),
        (
            ["curriculum.bucket_multiple=64", "curriculum.first_resolution=32"],
            ["curriculum.first_resolution", "curriculum.bucket_multiple=64", "32"],
        ),
        (["curriculum.bucket_multiple=12"], ["curriculum.bucket_multiple", "8"]),
        (["curriculum.first_resolution=30"], ["curriculum.first_resolution", "8"]),
        (["curriculum.min_crop_ratio=4"], ["curriculum", "min_crop_ratio", "4", "max_crop_ratio"]),
        (["multiview.min_angle_degrees=130"], ["multiview", "min_angle_degrees", "130", "max_angle_degrees"]),
        (["filter.scoring.aesthetic_head=head.pth"], ["filter.scoring", "aesthetic_head", "aesthetic_clip"]),
        (["inference.steps=5", "inference.mask_steps=12"], ["inference", "mask_steps", "12", "5 steps", "null"]),
        (["train_adapter.trainer.precision=fp16"], ["train_adapter.trainer", "fp16", "use_gpu"]),
        (
            ["contextualizer.trainer.zero_stage=3", "contextualizer.trainer.ema_decay=.9"],
            ["contextualizer.trainer", "ema_decay", "zero_stage"],
        ),
        (
            ["train_adapter.trainer.zero_stage=3", "train_adapter.trainer.optimizer=adamw"],
            ["train_adapter", "sample_every", "zero_stage=3"],
        ),
        (["train_adapter.trainer.zero_stage=2"], ["train_adapter.trainer", "muon", "zero_stage=2", "adamw"]),
        (["backbone.image_encoders=[clip, dino, other]"], ["backbone", "shallow_layers", "3 image_encoders", "2"]),
        (["backbone.shallow_layers=[[0], [0, 1]]"], ["backbone", "shallow_layers", "equal length"]),
        (["inference.mask_self_downscales=[8]"], ["inference.mask_self_downscales", "1, 2 and 4", "[8]"]),
        (
            ["train_adapter.method=realcustom", "curriculum.multiview_probability=0.5"],
            ["train_adapter.method=realcustom", "curriculum.multiview_probability", "0.5"],
        ),
        (["backbone.weights=owner/name"], ["evaluate.similarity", "judge", "owner/name", "clip or dino"]),
        (["customize.words=[lamp]"], ["customize.words", "'lamp'", "mug", "customize.subjects"]),
        (['evaluate.prompts=["a {word} on Mars"]'], ["evaluate.prompts", "on Mars", "on the beach"]),
        (["base.recipe.pool.categories=[mug, lamp]"], ["base.recipe.pool.categories", "'lamp'", "ball, box"]),
        (["base.recipe.pool.categories=[bear]"], ["base.recipe.pool.categories", "'train'", "'bear'"]),
    ],
)
def test_what_does_not_fit_together_is_named(settings: list[str], words: list[str]) -> None:
    sentence = refused(*settings)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    "settings",
    [
        ["train_adapter.trainer.workers=4", "train_adapter.trainer.accumulation=2"],
        ["train_adapter.drop_text=.5", "train_adapter.drop_image=.4", "train_adapter.drop_both=.1"],
        [
            "train_adapter.trainer.optimizer=adamw",
            "train_adapter.trainer.zero_stage=3",
            "train_adapter.sample_every=null",
        ],
        ["inference.steps=5", "inference.mask_steps=null"],
        ["inference.steps=5"],
        ["inference.steps=5", "train_adapter.method=realcustom"],
        ["base.recipe.judge_pool.categories=[bear]"],
        ["customize.words=[mug]"],
        ["customize.words=[dog]", "customize.subjects=[dog]"],
    ],
)
def test_what_fits_together_is_accepted(settings: list[str]) -> None:
    assert load_config("micro", settings)


def test_direct_construction_validates_as_well() -> None:
    with pytest.raises(ValueError, match="workers"):
        dataclasses.replace(Config().train_adapter.trainer, workers=0)
    unknown: dict[str, Any] = {"min_sides": 1}
    with pytest.raises(ValueError, match="min_sides"):
        dataclasses.replace(Config().filter, **unknown)


def test_a_section_is_not_a_key() -> None:
    with pytest.raises(
        UsageError, match=r"'train_adapter.trainer' is a section of the configuration; set one of train_ad"
    ):
        load_config("micro", ["train_adapter.trainer=3"])


def test_the_profile_is_chosen_with_its_flag() -> None:
    with pytest.raises(UsageError, match="--profile"):
        load_config("micro", ["profile=sdxl"])


def test_an_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"There is no profile 'micr'; there are micro, sd15, .*, sdxl_one_gpu\."):
        load_config("micr")


def test_a_section_keeps_the_defaults_of_its_place() -> None:
    config = load_config("micro", ["contextualizer.trainer.workers=1"])
    assert config.contextualizer.trainer == dataclasses.replace(Config().contextualizer.trainer, workers=1)


def test_paths_become_absolute_and_uris_and_hub_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["ingest.metadata=laion", "multiview.folders=[~/views, views]", "backbone.weights=a/b"]
    config = load_config("micro", [*settings, "evaluate.similarity=clip"])
    assert config.ingest.metadata == str(tmp_path / "laion")
    assert config.multiview.folders == [str(Path.home() / "views"), str(tmp_path / "views")]
    assert config.backbone.weights == "a/b"
    (tmp_path / "a" / "b" / "judge").mkdir(parents=True)
    assert load_config("micro", ["backbone.weights=a/b"]).backbone.weights == str(tmp_path / "a" / "b")
    assert load_config("micro", ["ingest.metadata=s3://bucket/laion"]).ingest.metadata == "s3://bucket/laion"


@pytest.mark.parametrize(
    ("given", "is_path"),
    [("someone/cups", False), ("cups", True), ("./someone/cups", True), ("a/b/c", True), ("here/cups", True)],
)
def test_pictures_may_be_a_dataset_of_the_hub(
    given: str, is_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "cups").mkdir(parents=True)
    found = load_config("micro", [f"filter.pictures_folder={given}"]).filter.pictures_folder
    assert found == (str(tmp_path / given) if is_path else given)


def test_image_encoders_and_scorers_are_paths_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip", "encoders/clip", "scorers/dino", "micro"):
        (tmp_path / name).mkdir(parents=True)
    settings = ["backbone.image_encoders=[clip, encoders/clip]", "evaluate.clip=./clip", "evaluate.dino=scorers/dino"]
    config = load_config("micro", settings)
    # A name without a slash is a part of the backbone or a hub id, whatever lies in the working directory.
    assert config.backbone.image_encoders == ["clip", str(tmp_path / "encoders" / "clip")]
    assert (config.evaluate.clip, config.evaluate.dino) == (str(tmp_path / "clip"), str(tmp_path / "scorers" / "dino"))
    assert config.filter.scoring.similarity_clip == "micro"


def test_a_stored_configuration_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = config_to_dict(load_config("micro", ["evaluate.clip=a/b"]))
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert config_from_dict(stored).evaluate.clip == "a/b"


def test_with_values_replaces_by_dotted_key() -> None:
    config = with_values(load_config("micro"), {"backbone.resolution": 32})
    assert (config.backbone.resolution, config.backbone.dtype) == (32, "float32")


def test_types_in_words() -> None:
    assert describe(Literal["a", "b"]) == "one of 'a', 'b'"
    assert describe(list[list[int]]).endswith("items that are each a list [..] of items that are each a whole number")
    assert describe(Annotated[float, Ge(0), Le(1)] | None) == "a number from 0 to 1 or null"
    assert describe(Annotated[float, Gt(0), Lt(1)]) == "a number above 0 and below 1"
    assert describe(Annotated[float, Gt(0), Le(1)]) == "a number above 0 and at most 1"


def test_importing_the_configuration_is_light() -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'pyarrow', 'pandas', 'numpy', 'rich'} & set(sys.modules)"
    code = f"import sys, pipeline, pipelines.config.loading, pipelines.cli.commands; print({heavy} or 'light')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "light"


REALCUSTOM = {
    "curriculum.multiview_probability": 0.0,
    "curriculum.max_crop_ratio": 1.0,
    "inference.mask_steps": None,
    "inference.mask_cross_downscales": [1, 2, 4],
    "inference.mask_self_downscales": [],
}


def chosen(config: Config) -> dict[str, object]:
    values = flat_values(config)
    return {key: values[key] for key in REALCUSTOM}


def test_realcustom_brings_its_own_defaults() -> None:
    config = load_config("micro", ["train_adapter.method=realcustom"])
    assert chosen(config) == REALCUSTOM
    assert config.inference.effective_mask_steps == config.inference.steps
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_an_explicit_setting_is_stronger_than_the_methods_default() -> None:
    for order in (1, -1):
        settings = ["train_adapter.method=realcustom", "inference.mask_steps=3"][::order]
        assert chosen(load_config("micro", settings)) == {**REALCUSTOM, "inference.mask_steps": 3}


def test_fewer_steps_bring_the_mask_steps_down() -> None:
    for config in (load_config("micro", ["inference.steps=5"]), config_from_dict({}, ["inference.steps=5"])):
        assert (config.inference.steps, config.inference.mask_steps) == (5, 5)
    assert load_config("micro", ["inference.steps=50"]).inference.mask_steps == 12
    assert load_config("micro", ["inference.steps=5", "inference.mask_steps=2"]).inference.mask_steps == 2


def test_a_profile_that_chooses_the_method_is_stronger_than_the_methods_default() -> None:
    profile = {"train_adapter.method": "realcustom", "inference.mask_steps": 5}
    assert with_method_defaults(profile, {}) == {**REALCUSTOM, **profile}
    assert with_method_defaults(profile, {"train_adapter.method": "realcustom"}) == {**REALCUSTOM, **profile}
    assert with_method_defaults({"inference.mask_steps": 5}, {"train_adapter.method": "realcustom"}) == {
        **REALCUSTOM,
        "train_adapter.method": "realcustom",
    }


def test_a_stored_configuration_takes_the_defaults_of_a_method_that_is_chosen_over_it() -> None:
    stored = config_to_dict(load_config("micro"))
    assert chosen(config_from_dict(stored, ["train_adapter.method=realcustom"])) == REALCUSTOM


@pytest.mark.parametrize("folder", ["s3:/bucket/run", "gs:/bucket/run", "abfs:/container/run", "file:/data/run"])
def test_a_uri_with_one_slash_is_no_folder(folder: str) -> None:
    with pytest.raises(UsageError, match=r"run\.folder .* two slashes"):
        load_config("micro", [f"run.folder={folder}"])
