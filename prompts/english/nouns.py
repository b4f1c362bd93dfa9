"""Class words in English: their indefinite article, and whether they name one thing, a pair, many, or a mass."""

from __future__ import annotations

import re
from typing import Literal

from prompts.schema import PLACEHOLDER

Number = Literal["singular", "pair", "plural", "mass"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Begin with another sound than letter.
_SILENT_H = ("hour", "honest", "honour", "honor", "heir")
_CONSONANT_SOUND = re.compile(
    r"(?:uni(?!n|m)|us(?:e|u|b\b)|ut(?:e|i|o)|ur(?:i|o|u(?!b))|ub(?:i|o)|uk|eu|ew|one\b|once\b|ouija|u-|u\b)",
    re.IGNORECASE,
)
#: Letters whose names begin with a vowel: "an MP3 player", "an x-ray", "an SUV".
_SPELLED = re.compile(r"[AEFHILMNORSX](?:[A-Z0-9](?![a-z])|\d|-(?=[a-zA-Z])|\b(?!'))|[fhlmnrsx]-|x-")
_SPOKEN_LIKE_A_WORD = ("NASA", "NATO", "SIM", "LEGO", "SONAR", "LASER", "RADAR", "RAM", "ROM", "LAN", "LOGO", "ROBOT")
_NUMBER_WITH_VOWEL = re.compile(r"8|11(?!\d)|18(?!\d)|11\d{3}(?!\d)|18\d{3}(?!\d)")

_PAIRS = _words(
    "glasses sunglasses eyeglasses goggles spectacles binoculars headphones earphones earbuds earrings scissors "
    "pliers tongs tweezers trousers pants jeans shorts leggings tights overalls pajamas pyjamas knickers boots "
    "shoes sneakers sandals slippers heels loafers socks stockings gloves mittens trainers skis skates cufflinks "
    "cleats clogs chopsticks handcuffs crutches"
)
_IRREGULAR_PLURALS = _words(
    "people men women children mice geese teeth feet oxen police cattle lice dice bacteria cacti fungi alumni "
    "criteria data media knives leaves wolves loaves shelves scarves calves"
)
#: End in an "s" that is no plural's.
_SINGULAR_IN_S = _words(
    "bus gas lens iris chess christmas canvas atlas bias pancreas cosmos rhinoceros chaos albatross species "
    "series news mathematics physics tennis pegasus walrus octopus cactus virus minibus omnibus abacus citrus "
    "lotus crocus hibiscus platypus hippopotamus campus circus crisis basis oasis axis trellis portcullis "
    "asparagus sinus genius census bonus menus status apparatus stylus nautilus eucalyptus thermos asbestos ibis "
    "clematis mantis amaryllis chassis corps barracks headquarters crossroads gallows triceratops cyclops bellows"
)
_MASSES = _words(
    "bread rice pasta sushi soup cheese butter milk water tea coffee wine beer juice sand snow ice grass hair fur "
    "furniture jewelry jewellery clothing luggage baggage equipment pottery porcelain food fruit salad honey "
    "chocolate money paper wood gold silver cotton wool lace silk fabric cutlery silverware glassware tableware "
    "footwear headwear underwear lingerie machinery popcorn spaghetti ramen bacon ham beef meat tofu corn wheat "
    "moss seaweed ivy bamboo graffiti confetti armor armour"
)


def article(phrase: str) -> str:
    """The phrase behind its indefinite article, by sound: "a unicorn", "an hour", "an MP3 player"."""
    return f"{'an' if _begins_with_a_vowel(phrase) else 'a'} {phrase}"


def number_of(noun: str) -> Number:
    """Whether a class word, of any number of words, is one thing, a pair, many or a mass."""
    head = _head(noun)
    if head in _PAIRS:
        return "pair"
    if head in _MASSES:
        return "mass"
    if head in _IRREGULAR_PLURALS or (head not in _SINGULAR_IN_S and re.search(r"(?<![sui])s$|ies$", head)):
        return "plural" if len(head) > 3 else "singular"
    return "singular"


def without_placeholder(prompt: str) -> str:
    """A prompt about the class alone: "a [v] umbrella at sea" becomes "an umbrella at sea"."""
    text = re.sub(
        rf"\b([Aa])n?(\s+[\"'\u201c\u2018(\[]*){re.escape(PLACEHOLDER)}\s+(\S+)",
        lambda found: f"{found[1]}{'n' if _begins_with_a_vowel(found[3]) else ''}{found[2]}{found[3]}",
        prompt,
    )
    return " ".join(re.sub(rf"{re.escape(PLACEHOLDER)}\s*", "", text).split())


def _head(noun: str) -> str:
    """The last word of the noun that others describe: "bowl" of "bowl of berries", "glasses" of "pair of glasses"."""
    before = re.split(r"\s+(?:of|with|in|on|for)\s+", noun.casefold())[0].split()
    return before[-1].rsplit("-", 1)[-1] if before else ""


def _begins_with_a_vowel(phrase: str) -> bool:
    word = phrase.lstrip("\"'\u201c\u2018([").split(" ")[0]
    if word[:1].isdigit():
        return _NUMBER_WITH_VOWEL.match(word) is not None
    if word.casefold().startswith(_SILENT_H):
        return True
    if _CONSONANT_SOUND.match(word):
        return False
    if _SPELLED.match(word) and not word.startswith(_SPOKEN_LIKE_A_WORD):
        return True
    acronym = re.match(r"[A-Z]{2,}\b", word) and not word.startswith(_SPOKEN_LIKE_A_WORD)
    return word[:1].casefold() in ("u" * (not acronym) + "aeioàáâäåæèéêëìíîïòóôöøùúûü")
