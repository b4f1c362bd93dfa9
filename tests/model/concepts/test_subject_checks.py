"""The words and prompts of a subject, checked with a tokenizer alone."""

from __future__ import annotations

from typing import Any

import pytest

from model.concepts.concept import ConceptError
from model.concepts.customization_settings import CustomizationSettings, Method
from model.concepts.subject_checks import check_prompts, check_words, readable_prompts
from model.micro_sd.architectures import build_tokenizer
from tests.support.customization import make_subject
from tests.support.tiny_models import MAX_TOKENS, build_clip_tokenizer

TI: Method = "textual_inversion"
DREAMBOOTH: Method = "dreambooth"

#: Tokenizer, placeholder, class word, method -> what the one sentence says; "": they are accepted. CLIP's tokenizer
#: has "cat", "in" and all letters as tokens; the micro world's has words only, and drops punctuation.
WORDS: dict[str, tuple[str, str, str, Method, str]] = {
    "brackets": ("micro", "[v]", "mug", TI, ""),
    "no brackets": ("micro", "fluffy", "mug", TI, ""),
    "a word": ("micro", "snow", "mug", TI, "'snow' is a token already"),
    "a word in upper case": ("micro", "SNOW", "mug", TI, "'SNOW' is a token already"),
    "a word with punctuation that is dropped": ("micro", "<snow>", "mug", TI, ""),
    "CLIP's word": ("clip", "cat", "toy", TI, "'cat' is a token already"),
    "part of a word": ("clip", "ca", "toy", TI, ""),
    "a letter": ("clip", "v", "toy", TI, "'v' is a token already"),
    "the Textual Inversion paper's star": ("clip", "*", "toy", TI, "'*' is a token already"),
    "a star that is no token": ("micro", "*", "mug", TI, ""),
    "Custom Diffusion": ("clip", "cat", "toy", "custom_diffusion", "is a token already"),
    "XTI": ("clip", "in", "toy", "xti", "is a token already"),
    "DreamBooth's word": ("clip", "cat", "toy", DREAMBOOTH, ""),
    "DreamBooth's unknown word": ("micro", "sks", "mug", DREAMBOOTH, ""),
    "DreamBooth's word in brackets": ("micro", "[v]", "mug", DREAMBOOTH, ""),
    "DreamBooth's punctuation": ("micro", "***", "mug", DREAMBOOTH, r"reads nothing of the placeholder '\*\*\*'"),
    "a class word of two words": ("clip", "[v]", "teddy bear", TI, ""),
    "a class word of many tokens": ("clip", "[v]", "hippopotamus", TI, ""),
    "an unknown class word": ("micro", "[v]", "hippopotamus", TI, "the class word 'hippopotamus' is not in"),
    "an unknown part of the class word": ("micro", "[v]", "coffee mug", TI, "the class word 'coffee mug' is not in"),
    "a class word of punctuation": ("micro", "[v]", "...", TI, r"the class word '...' is not in"),
    "an unknown class word of DreamBooth": ("micro", "sks", "hippopotamus", DREAMBOOTH, "the class word"),
}


def tokenizer_of(name: str) -> Any:
    return build_clip_tokenizer() if name == "clip" else build_tokenizer()


@pytest.mark.parametrize(("tokenizer", "placeholder", "word", "method", "message"), WORDS.values(), ids=WORDS)
def test_words(tokenizer: str, placeholder: str, word: str, method: Method, message: str) -> None:
    if not message:
        check_words(tokenizer_of(tokenizer), placeholder, word, method)
        return
    with pytest.raises(ConceptError, match=message) as caught:
        check_words(tokenizer_of(tokenizer), placeholder, word, method)
    assert str(caught.value).endswith(".")


#: Caption, vectors -> the end that is not read; None: the placeholder is not read either. The encoder reads 22 tokens
#: beside the start and the end, and most words have a token a letter.
CAPTIONS: dict[str, tuple[str, int, str | None]] = {
    "short": ("a [v] cat", 1, ""),
    "as long as can be": ("[v] cat " + "a " * 20, 1, ""),
    "one token too long": ("[v] cat " + "a " * 20 + "b", 1, "b"),
    "one vector too many": ("[v] cat " + "a " * 19 + "b", 2, "b"),
    "in a word": ("a [v] cat in abcdefghijklmnopqrstuvwxyz", 1, "stuvwxyz"),
    "words": ("a [v] cat in a dark wet forest with trees", 1, "trees"),
    "punctuation": ("a [v] cat " + "." * 30, 1, "." * 11),
    "decomposed": ("a [v] cat in abcdefghijklmnopqr cafe\u0301", 1, "café"),
    "upper case": ("a [v] cat in abcdefghijklmnop QRS TUV", 1, "S TUV"),
    "spaces at the end": ("[v] cat " + "a " * 20 + "   ", 1, ""),
    "the placeholder at the end": ("a cat in abcdefghijklmnopqrstuvwxyz [v]", 1, None),
    "half of the placeholder": ("a cat " + "a " * 18 + "[v]", 3, None),
    "more vectors than the encoder reads": ("[v]", 23, None),
    "all that the encoder reads": ("[v]", 22, ""),
    "the placeholder twice": ("[v] cat " + "a " * 20 + "[v]", 1, "[v]"),
}


@pytest.mark.parametrize(("caption", "vectors", "end"), CAPTIONS.values(), ids=CAPTIONS)
def test_captions_that_are_cut_off(caption: str, vectors: int, end: str | None) -> None:
    tokenizer, settings = build_clip_tokenizer(), CustomizationSettings(method="textual_inversion", vectors=vectors)
    subject = make_subject(captions=(caption,) * 3)
    before = len(tokenizer)
    if end is None:
        with pytest.raises(ConceptError, match=rf"longer than the {MAX_TOKENS} tokens .* '\[v\]' is cut off"):
            check_prompts(tokenizer, subject, settings)
    else:
        sentences = check_prompts(tokenizer, subject, settings)
        assert [sentence.rsplit(": ", 1)[1] for sentence in sentences] == ([repr(end)] if end else [])
    assert len(tokenizer) == before


def test_templates_with_too_many_vectors_and_contexts() -> None:
    tokenizer = build_clip_tokenizer()
    fixed = CustomizationSettings(method="textual_inversion", vectors=22)
    with pytest.raises(ConceptError, match="take fewer vectors"):
        check_prompts(tokenizer, make_subject(), fixed)
    ico = CustomizationSettings(method="custom_diffusion", prompts="ico", vectors=16)
    with pytest.raises(ConceptError, match="the prompt has 23 tokens, and the text encoder reads 22: shorten"):
        check_prompts(tokenizer, make_subject(), ico)


def test_rich_prompts_that_are_cut_off() -> None:
    tokenizer, settings = build_clip_tokenizer(), CustomizationSettings(method="textual_inversion", vectors=2)
    long, lost = "a [v] cat in abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz [v] cat"
    assert readable_prompts(tokenizer, ["[v] cat", "a [v] cat in"], make_subject(), settings)[1] == []
    kept, (sentence,) = readable_prompts(tokenizer, ["[v] cat", long, lost], make_subject(), settings)
    assert kept == ["[v] cat", long]
    assert "the end of 2 context-rich prompts" in sentence
    assert "'rstuvwxyz' of 'a [v] cat in abc" in sentence
    assert sentence.endswith("1 are left out, in which '[v]' is cut off")
