"""What a customization learns, from which subjects. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, field
from typing import Literal

Method = Literal["textual_inversion", "xti", "dreambooth", "custom_diffusion"]
#: The methods whose class word may drift, so that pictures of it preserve it.
WITH_PRIOR: tuple[Method, ...] = ("dreambooth", "custom_diffusion")


def placeholder_key(placeholder: str) -> str:
    """The same for all ways to write a placeholder that are found in a prompt alike: in any case and normal form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", placeholder).casefold())


@dataclass(frozen=True, kw_only=True)
class ConceptSubject:
    """A subject that a concept is learned from.

    Attributes:
        name: For people.
        word: The class word; may be several words.
        placeholder: V* as it is written in prompts.
        pictures: Encoded pictures, square, all of one size.
        captions: One for each picture, which names the class word or the placeholder; None: fixed templates.
        class_pictures: Of the class word, for prior preservation (DreamBooth Sec. 3.3); squares of the same size.
        class_prompts: One for each class picture; empty: "a photo of a <word>" for all.
        digest: Of the pictures, which are not compared.
    """

    name: str
    word: str
    placeholder: str
    pictures: tuple[bytes, ...] = field(compare=False, repr=False)
    captions: tuple[str, ...] | None = None
    class_pictures: tuple[bytes, ...] = field(default=(), compare=False, repr=False)
    class_prompts: tuple[str, ...] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        sums = [hashlib.sha256(picture).hexdigest() for picture in (*self.pictures, *self.class_pictures)]
        object.__setattr__(self, "digest", hashlib.sha256(" ".join(sums).encode()).hexdigest()[:16])


@dataclass(frozen=True, kw_only=True)
class CustomizationSettings:
    """How a concept is learned: what is trained, with which prompts, by which losses.

    Attributes:
        method: What is trained. textual_inversion: the placeholder's vectors (Gal et al. 2022). xti: one set of them
            for each cross-attention layer (P+, Voynov et al. 2023). dreambooth: LoRA in the attention layers of UNet
            and text encoders (Ruiz et al. 2023). custom_diffusion: vectors and the cross-attention's W_K and W_V
            (Kumari et al. 2023).
        full: DreamBooth: the whole UNet and text encoders instead of LoRA.
        vectors: Of the placeholder; S of ICO's Eq. 2. DreamBooth has none of its own: it uses a word as it is.
        lora_rank: Of DreamBooth's LoRA.
        prompts: fixed: templates or captions; ico: learned contexts, one set a picture (ICO, Eq. 2).
        context_before: M of Eq. 2.
        context_after: L of Eq. 2.
        mlm: Whether the MLM loss is added (Contextualizer, Algorithm 2).
        mlm_weight: lambda of Algorithm 2.
        mask_rate: Share of the context-rich prompts' tokens that are masked.
        prior_weight: Of the loss on the class pictures; 0: off. DreamBooth and Custom Diffusion only.
        batch_size: Pictures of a step, of all workers together; as many class pictures and rich prompts come on top.
        flip: Probability that a picture is mirrored.
        crop: The side of the smallest random crop, as a share of the picture's; 1: no crops.
        resize: Whether the pictures are made smaller or larger (`resizing.py`); class pictures are not.
    """

    method: Method
    full: bool = False
    vectors: int = 1
    lora_rank: int = 4
    prompts: Literal["fixed", "ico"] = "fixed"
    context_before: int = 4
    context_after: int = 2
    mlm: bool = False
    mlm_weight: float = 1e-4
    mask_rate: float = 0.15
    prior_weight: float = 0.0
    batch_size: int = 4
    flip: float = 0.0
    crop: float = 1.0
    resize: bool = False

    @property
    def says_size(self) -> bool:
        """Whether templates get words for the size of a resized picture; ICO's contexts describe the picture."""
        return self.resize and self.prompts == "fixed"
