from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config.loading import (
    config_from_dict,
    config_to_dict,
    describe,
    flat_values,
    key_types,
    load_config,
    parse_settings,
    profile_names,
    with_values,
)
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
    assert profile_names() == ["micro", "sd15", "sdxl"]
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
    assert config.backbone.resolution == config.ingest.image_size == config.multiview.image_size == resolution
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
        ("curriculum.steps=10", "curriculum.steps", 10),
        ("customize.learning_rate=1e-4", "customize.learning_rate", 1e-4),
        ("train_adapter.trainer.workers=1", "train_adapter.trainer.workers", 1),
        ("train_adapter.cross_layer=add", "train_adapter.cross_layer", "add"),
        ("train_adapter.cross_scale=null", "train_adapter.cross_scale", None),
        ("customize.word=7", "customize.word", "7"),
        ("customize.placeholder=[v]", "customize.placeholder", "[v]"),
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


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "filter.min_astetic=6",
            "There is no configuration key 'filter.min_astetic'. Did you mean 'filter.min_aesthetic'?",
        ),
        (
            "min_aesthetic=6",
            "There is no configuration key 'min_aesthetic'. "
            "Did you mean 'ingest.min_aesthetic' or 'filter.min_aesthetic'?",
        ),
        ("filter.min_aesthetic=high", "filter.min_aesthetic takes a number or null, not 'high'."),
        ("filter.min_side=4.5", "filter.min_side takes a whole number or null, not 4.5."),
        ("filter.min_side=true", "filter.min_side takes a whole number or null, not True."),
        ("filter.drop_duplicates=3", "filter.drop_duplicates takes true or false, not 3."),
        ("curriculum.steps=null", "curriculum.steps takes a whole number, not None."),
        ("curriculum.steps=", "curriculum.steps takes a whole number, not None."),
        ("train_adapter.cross_scale=sum", "train_adapter.cross_scale takes one of 'concat', 'add' or null, not 'sum'."),
        ("curriculum.steps=[1", "curriculum.steps takes a whole number, not '[1'."),
        ("prompts.concepts=toy", "prompts.concepts takes a list [..] of items that are each text, not 'toy'."),
        (
            "filter.min_aesthetic",
            "--set takes key=value, such as filter.min_aesthetic=6.0; 'filter.min_aesthetic' has no '='.",
        ),
        ("curriculum.steps=-1", "curriculum.steps cannot be negative; it is -1."),
    ],
)
def test_what_is_wrong_is_named(setting: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("micro", [setting])
    assert str(caught.value) == sentence


def test_a_section_is_not_a_key() -> None:
    with pytest.raises(
        UsageError, match=r"'train_adapter.trainer' is a section of the configuration; set one of train_ad"
    ):
        load_config("micro", ["train_adapter.trainer=3"])


def test_the_profile_is_chosen_with_its_flag() -> None:
    with pytest.raises(UsageError, match="--profile"):
        load_config("micro", ["profile=sdxl"])


def test_an_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"There is no profile 'micr'; there are micro, sd15, sdxl\."):
        load_config("micr")


def test_encoders_and_layers_must_pair() -> None:
    with pytest.raises(UsageError, match=r"one list for each of the 3 backbone\.image_encoders; it holds 2"):
        load_config("micro", ["backbone.image_encoders=[clip, dino, other]"])


def test_a_section_keeps_the_defaults_of_its_place() -> None:
    config = load_config("micro", ["contextualizer.trainer.workers=1"])
    assert config.contextualizer.trainer == dataclasses.replace(Config().contextualizer.trainer, workers=1)


def test_paths_become_absolute_and_uris_and_hub_ids_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(
        "micro", ["ingest.metadata=laion", "multiview.folders=[s3://bucket/views, views]", "backbone.weights=a/b"]
    )
    assert config.ingest.metadata == str(tmp_path / "laion")
    assert config.multiview.folders == ["s3://bucket/views", str(Path("views").absolute())]
    assert config.backbone.weights == "a/b"
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert load_config("micro", ["backbone.weights=a/b"]).backbone.weights == str(tmp_path / "a" / "b")


def test_with_values_replaces_by_dotted_key() -> None:
    config = with_values(load_config("micro"), {"backbone.resolution": 32})
    assert (config.backbone.resolution, config.backbone.family) == (32, "sd")


def test_types_in_words() -> None:
    assert describe(Literal["a", "b"]) == "one of 'a', 'b'"
    assert (
        describe(list[list[int]])
        == "a list [..] of items that are each a list [..] of items that are each a whole number"
    )


def test_every_key_has_a_described_type() -> None:
    assert set(key_types()) == set(flat_values(Config()))
    for kind in key_types().values():
        assert describe(kind)


def _values(kind: Any) -> st.SearchStrategy[Any]:
    plain = {
        int: st.integers(0, 10**6),
        float: st.floats(0, 1e6),
        bool: st.booleans(),
        str: st.text("ab /[]{}:#'\"", max_size=8),
    }
    if kind in plain:
        return plain[kind]
    if type(None) in getattr(kind, "__args__", ()):
        return st.none() | _values(next(part for part in kind.__args__ if part is not type(None)))
    if get_origin(kind) is Literal:
        return st.sampled_from(kind.__args__)
    values = st.lists(_values(kind.__args__[0]), max_size=3)
    return values.map(tuple) if kind.__origin__ is tuple else values


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    checked = {"profile", "backbone.image_encoders", "backbone.shallow_layers"}  # not every value is one
    checked |= {"base.recipe.pool.categories", "base.recipe.judge_pool.categories"}
    keys = draw(st.lists(st.sampled_from(sorted(key_types().keys() - checked)), unique=True, max_size=5))
    return {key: draw(_values(key_types()[key])) for key in keys}


@given(changes())
def test_a_configuration_survives_json(values: dict[str, Any]) -> None:
    config = with_values(load_config("micro"), values)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_importing_the_configuration_is_light() -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'pyarrow', 'pandas', 'numpy', 'pydantic', 'rich'} & set(sys.modules)"
    code = f"import sys, pipeline, pipelines.config.loading, pipelines.cli.commands; print({heavy} or 'light')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "light"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "base.recipe.pool.categories=[]",
            r"^base\.recipe\.pool\.categories: .*at least one category",
        ),
        ("base.recipe.pool.categories=[mug, lamp]", r"has no 'lamp'; choose from ball, box"),
        ("base.recipe.pool.categories=[bear]", r"a world of split 'train' has no 'bear'"),
    ],
)
def test_a_world_needs_categories_that_it_has(value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config("micro", [value])
    assert load_config("micro", ["base.recipe.judge_pool.categories=[bear]"])
