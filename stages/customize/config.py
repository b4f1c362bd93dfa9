"""The settings of the stage `customize`."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import StringConstraints, model_validator
from pydantic.dataclasses import dataclass

from model.concepts.customization_settings import WITH_PRIOR, Method, placeholder_key
from model.guidance.settings import InferenceSettings
from model.settings import STRICT, NonNegativeFloat, PositiveInt, Share, Text, Words
from stages.settings import LocalPath, Operation
from stages.training.config import TrainerConfig

Token = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f\x7f]+$"), Words("text without spaces, not empty")]

#: What a method brings with it when it is chosen, on the micro backbone: values by dotted key. A profile may hold
#: others (`methods` in its file); an explicit setting wins.
METHOD_DEFAULTS: Mapping[Method, Mapping[str, Any]] = {
    "textual_inversion": {},
    "xti": {"customize.vectors": 1, "customize.trainer.learning_rate": 1e-2},
    "dreambooth": {
        "customize.vectors": 1,
        "customize.steps": 100,
        "customize.sample_every": 50,
        "customize.trainer.learning_rate": 2e-3,
        "customize.prior_weight": 1.0,
        "customize.flip": 0.0,
    },
    "custom_diffusion": {
        "customize.vectors": 1,
        "customize.steps": 100,
        "customize.sample_every": 50,
        "customize.trainer.learning_rate": 3e-4,
        "customize.prior_weight": 1.0,
    },
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConceptScoringConfig:
    """The pictures from which it is measured whether a concept has learned; `evaluate` has the prompts and metrics."""

    prompts: Annotated[int, Ge(2), Le(1000)] = 10
    """At most as many as there are for the class word."""
    seeds: PositiveInt = 1
    """Pictures of each prompt."""
    steps: Annotated[int, Ge(1), Le(1000)] = 25
    """Denoising steps."""
    guidance_scale: NonNegativeFloat = 5.0

    @property
    def inference(self) -> InferenceSettings:
        """For the pipeline."""
        return InferenceSettings(steps=self.steps, guidance_scale=self.guidance_scale, mask_steps=None)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CustomizeConfig:
    """Concepts from a few pictures of each subject, with or without the MLM loss (Contextualizer, Algorithm 2)."""

    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(workers=1, learning_rate=2e-2, weight_decay=0.0)
    )
    method: Method = "textual_inversion"
    """What is trained; each brings its own defaults, see the end of this page."""
    mlm: bool = True
    """Add the MLM loss on context-rich prompts."""
    prompts: Literal["fixed", "ico", "captions"] = "fixed"
    """The prompts of the pictures: templates, learned contexts (ICO, Eq. 2), or for each picture the text in a file of
    its name that ends in .txt."""
    subjects: list[LocalPath] | None = None
    """A folder of 3 to 6 pictures for each subject; []: no concept is learned; null: held-out subjects of the
    microworld."""
    words: Annotated[list[Text], MinLen(1)] = field(default_factory=lambda: ["mug"])
    """The class word of each subject."""
    placeholders: list[Token] = field(default_factory=list)
    """The new token of each subject; []: [v], of several subjects [v1], [v2], ..."""
    pictures: Literal["views", "album"] = "views"
    """Of subjects of the microworld: views in different places, or an album with one background, one neighbour and
    almost one pose, to which a method can overfit."""
    joint: bool = False
    """Custom Diffusion: learn all subjects together, in one concept."""
    steps: PositiveInt = 60
    batch_size: PositiveInt = 4
    """Pictures of a step, over all workers."""
    mlm_weight: NonNegativeFloat = 1e-4
    """lambda."""
    mask_rate: Annotated[float, Gt(0), Lt(1)] = 0.15
    """Share of the context-rich prompts' tokens that are masked."""
    vectors: Annotated[int, Ge(1), Le(64)] = 3
    """Of a placeholder, for each layer with XTI; ICO's S."""
    context_before: Annotated[int, Ge(0), Le(16)] = 4
    """ICO's M: learned contexts of a picture before the concept."""
    context_after: Annotated[int, Ge(0), Le(16)] = 2
    """ICO's L: those after it."""
    lora_rank: Annotated[int, Ge(1), Le(1024)] = 4
    """DreamBooth's."""
    full: bool = False
    """DreamBooth: train the whole UNet and text encoder instead of LoRA."""
    prior_weight: NonNegativeFloat = 0.0
    """DreamBooth, Custom Diffusion: of the loss on pictures of the class, which the base model paints; 0: none."""
    prior_pictures: PositiveInt = 16
    """Pictures of each class."""
    prior_folder: LocalPath | None = None
    """Real pictures of the class instead of painted ones."""
    flip: Share = 0.5
    """Share of the pictures that are mirrored; 0 for subjects that must not be, such as those with writing."""
    crop: Annotated[float, Gt(0), Le(1)] = 1.0
    """Side of the smallest random crop, as a share of the picture's; 1: no crops."""
    resize: bool = False
    """Custom Diffusion: make the pictures smaller or larger at random; templates get words for the size, and what is
    around a smaller picture has no loss."""
    gradient_checkpointing: Operation[bool] = False
    """The activations of UNet and text encoders are computed twice: less memory, more time."""
    sample_every: PositiveInt | None = 30
    """Steps between two sets of sample pictures with their scores; null: at the end only."""
    scoring: ConceptScoringConfig = field(default_factory=ConceptScoringConfig)

    @model_validator(mode="after")
    def _batch_fits(self) -> CustomizeConfig:
        if problem := self.trainer.batch_problem(self.batch_size, "customize.trainer"):
            raise ValueError(f"batch_size {problem}")
        if self.sample_every is not None and self.trainer.zero_stage == 3:
            raise ValueError(
                "sample pictures need all weights on one worker, and trainer.zero_stage=3 keeps them in pieces; set "
                "sample_every to null, or trainer.zero_stage to at most 2"
            )
        return self

    @model_validator(mode="after")
    def _one_word_for_each_subject(self) -> CustomizeConfig:
        for name, values in (("words", self.subjects or []), ("placeholders", self.placeholders)):
            if values and len(values) != len(self.words):
                other = "subjects" if name == "words" else "placeholders"
                raise ValueError(
                    f"{other} holds {len(values)} and words {len(self.words)}: set one of each for every subject"
                )
        return self

    @model_validator(mode="after")
    def _placeholders_are_new(self) -> CustomizeConfig:
        names = self.placeholder_names
        hidden = next((name for name in names if all(unicodedata.category(one)[0] in "CZ" for one in name)), None)
        if hidden is not None:
            raise ValueError(f"the placeholder {hidden!a} has no visible character: set placeholders to words like [v]")
        twice = [name for name, count in Counter(map(placeholder_key, names)).items() if count > 1]
        if twice:
            raise ValueError(f"two subjects have the placeholder {twice[0]!r}: set placeholders to different ones")
        taken = {placeholder_key(part) for word in self.words for part in (word, *word.split())}
        wrong = next((name for name in names if placeholder_key(name) in taken), None)
        if wrong is not None:
            raise ValueError(f"the placeholder {wrong!r} is a class word: set placeholders to new words, such as [v]")
        return self

    @model_validator(mode="after")
    def _options_fit_the_method(self) -> CustomizeConfig:
        if self.joint and (self.method != "custom_diffusion" or len(self.words) < 2):
            raise ValueError(
                f"joint learns several subjects with method=custom_diffusion, not {len(self.words)} with "
                f"{self.method}; set joint to false"
            )
        if self.prior_weight and self.method not in WITH_PRIOR:
            raise ValueError(f"{self.method} trains no weights: set prior_weight to 0")
        if self.resize and self.method != "custom_diffusion":
            raise ValueError(f"resize is an option of custom_diffusion: set it to false for {self.method}")
        if self.full and self.method != "dreambooth":
            raise ValueError(f"full is an option of dreambooth: set it to false for {self.method}")
        if self.prior_folder is not None and not self.prior_weight:
            raise ValueError("prior_folder is not read with prior_weight=0: set prior_weight to 1")
        if self.prior_folder is not None and len(set(self.words)) > 1:
            raise ValueError("prior_folder holds pictures of one class, and words name several: set it to null")
        if self.prompts == "captions" and self.subjects is None:
            raise ValueError("the microworld's subjects have no captions: set subjects, or prompts to fixed")
        if self.prompts == "ico" and not self.context_before + self.context_after:
            raise ValueError("prompts=ico needs contexts: set context_before or context_after to at least 1")
        return self

    @property
    def is_wanted(self) -> bool:
        """Whether concepts are learned."""
        return self.subjects != []

    @property
    def concepts(self) -> int:
        """How many concepts are learned, each by a training."""
        if not self.is_wanted:
            return 0
        return 1 if self.joint else len(self.words)

    @property
    def placeholder_names(self) -> list[str]:
        """The placeholder of each subject."""
        if self.placeholders or len(self.words) == 1:
            return self.placeholders or ["[v]"]
        return [f"[v{number}]" for number, _ in enumerate(self.words, 1)]
