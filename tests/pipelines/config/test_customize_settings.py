"""The settings of `customize`: what does not fit together is refused when they are loaded, and what methods bring."""

from __future__ import annotations

import pytest

from pipelines.config.loading import config_from_dict, config_to_dict, load_config
from pipelines.errors import UsageError

TWO = "words=[mug, toy]"

#: Settings below `customize.`, and what the one sentence must contain.
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "a placeholder twice": ([TWO, "placeholders=[[v], [v]]"], ["placeholders", "'[v]'"]),
    "a placeholder twice but for its case": ([TWO, "placeholders=[<V>, <v>]"], ["two subjects", "'<v>'"]),
    "a placeholder twice but for its normal form": (
        [TWO, 'placeholders=["<café>", "<cafe\u0301>"]'],
        ["two subjects", "placeholder"],
    ),
    "fewer placeholders than words": ([TWO, "placeholders=[[v]]"], ["placeholders", "1", "2"]),
    "more placeholders than words": (["placeholders=[[v], [w]]"], ["placeholders", "2", "1"]),
    "fewer words than subjects": (["subjects=[a, b]"], ["subjects", "2", "1"]),
    "no word": (["words=[]"], ["customize.words", "one or more"]),
    "a placeholder with a space": (["placeholders=[my dog]"], ["customize.placeholders", "without spaces"]),
    "an invisible placeholder": (['placeholders=["\u200b"]'], ["200b", "visible"]),
    "invisible characters of two kinds": (['placeholders=["\u2060\ufeff"]'], ["2060", "visible"]),
    "an empty placeholder": (['placeholders=[""]'], ["customize.placeholders", "not empty"]),
    "the class word": (["placeholders=[mug]"], ["'mug'", "class word"]),
    "the class word in upper case": (["placeholders=[MUG]"], ["'MUG'", "class word"]),
    "a part of the class word": (["subjects=[a]", "words=[coffee mug]", "placeholders=[mug]"], ["'mug'", "class word"]),
    "the class word of another": ([TWO, "placeholders=[[v], mug]"], ["'mug'", "class word"]),
    "a word of the micro world": (["placeholders=[beach]"], ["customize.placeholders", "'beach'", "common"]),
    "a common word": (["placeholders=[lighthouse]"], ["customize.placeholders", "'lighthouse'", "common"]),
    "a common word in upper case": (["placeholders=[Kitchen]"], ["customize.placeholders", "'Kitchen'", "common"]),
    "joint Textual Inversion": ([TWO, "joint=true"], ["joint", "custom_diffusion", "textual_inversion"]),
    "joint DreamBooth": ([TWO, "joint=true", "method=dreambooth"], ["joint", "dreambooth"]),
    "one subject, joint": (["joint=true", "method=custom_diffusion"], ["joint", "not 1"]),
    "an unknown method": (["method=lora"], ["customize.method", "'dreambooth'", "'lora'"]),
    "a prior without weights": (["prior_weight=1"], ["textual_inversion", "prior_weight"]),
    "XTI with a prior": (["method=xti", "prior_weight=0.5"], ["xti", "prior_weight"]),
    "pictures of a class that are not read": (
        ["method=dreambooth", "prior_weight=0", "prior_folder=dogs"],
        ["prior_folder", "prior_weight"],
    ),
    "pictures of one class for two": (
        ["method=dreambooth", "prior_weight=1", "prior_folder=dogs", TWO],
        ["prior_folder", "one class"],
    ),
    "a whole model of Custom Diffusion": (["method=custom_diffusion", "full=true"], ["full", "dreambooth"]),
    "resized pictures of DreamBooth": (["method=dreambooth", "resize=true"], ["resize", "custom_diffusion"]),
    "captions of the microworld": (["prompts=captions"], ["microworld", "captions", "subjects"]),
    "ICO without contexts": (["prompts=ico", "context_before=0", "context_after=0"], ["ico", "context_before"]),
    "a batch that workers cannot share": (["trainer.workers=3"], ["batch_size", "3", "4"]),
    "samples with ZeRO 3": (["trainer.zero_stage=3"], ["sample_every", "zero_stage"]),
    "one prompt, of which there is no interval": (["scoring.prompts=1"], ["customize.scoring.prompts", "from 2"]),
    "everything masked": (["mask_rate=1"], ["customize.mask_rate", "below 1"]),
    "a crop of nothing": (["crop=0"], ["customize.crop", "above 0"]),
    "a word that the microworld does not hold out": (["words=[lamp]"], ["customize.words", "'lamp'"]),
}

ACCEPTED: dict[str, list[str]] = {
    "names are given": [TWO],
    "a rare word": ["placeholders=[sks]", "method=dreambooth"],
    "angle brackets": ["placeholders=[<my-toy>]"],
    "other scripts": [TWO, "placeholders=[<犬>, ✿]"],
    "joint": [TWO, "method=custom_diffusion", "joint=true"],
    "ICO for DCI": ["method=custom_diffusion", "prompts=ico", "vectors=3", "context_before=1", "context_after=1"],
    "captions": ["subjects=[a]", "words=[dog]", "prompts=captions"],
    "two of one class with real pictures": [
        "subjects=[a, b]",
        "words=[dog, dog]",
        "method=dreambooth",
        "prior_weight=1",
        "prior_folder=dogs",
    ],
    "the whole model": ["method=dreambooth", "full=true"],
    "ZeRO 3 without samples": ["trainer.zero_stage=3", "sample_every=null"],
}


def load(settings: list[str], profile: str = "micro") -> object:
    """One mug, unless the settings name other words."""
    return load_config(profile, [f"customize.{setting}" for setting in ("words=[mug]", *settings)])


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED)
def test_what_the_settings_alone_show_to_be_wrong(settings: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load(settings)
    assert all(word in str(caught.value) for word in words)
    assert str(caught.value).startswith("customize")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", ACCEPTED.values(), ids=ACCEPTED)
def test_what_fits_together(settings: list[str]) -> None:
    assert load(settings)


#: Steps and rate of the papers, or of diffusers' scripts where they have none.
PAPERS = {
    "textual_inversion": (5000, 5e-3, 0.0),
    "xti": (500, 5e-3, 0.0),
    "dreambooth": (800, 1e-4, 1.0),
    "custom_diffusion": (500, 8e-5, 1.0),
}


@pytest.mark.parametrize("profile", ["sd15", "sdxl"])
@pytest.mark.parametrize("method", PAPERS)
def test_a_method_brings_the_profiles_steps_and_rate(profile: str, method: str) -> None:
    config = load_config(profile, [f"customize.method={method}"])
    found = config.customize
    assert (found.steps, found.trainer.learning_rate, found.prior_weight) == PAPERS[method]
    assert found.resize == (method == "custom_diffusion")
    explicit = load_config(profile, ["customize.steps=7", f"customize.method={method}"]).customize
    assert (explicit.steps, explicit.trainer.learning_rate) == (7, found.trainer.learning_rate)
    again = config_from_dict(config_to_dict(load_config(profile)), [f"customize.method={method}"])
    assert again.customize == found
