"""The messages to the language model that writes prompts."""

from __future__ import annotations

from collections.abc import Sequence

from prompts.schema import MAX_PROMPT_WORDS, PLACEHOLDER, Variation

SYSTEM = f"""You write prompts for a text-to-image model that has learned one particular object. The token \
{PLACEHOLDER} stands for that object and is always followed directly by its class word, as in "a photo of a \
{PLACEHOLDER} dog at the Eiffel Tower". Write natural English captions of at most {MAX_PROMPT_WORDS} words, each one \
different from all others in what is around the object, not only in wording. Use {PLACEHOLDER} exactly once in a \
prompt. Answer with JSON only: \
{{"prompts": [{{"prompt": "...", "variation": "..."}}]}}."""

_INSTRUCTIONS: dict[Variation, str] = {
    "background": "Vary the place: indoors and outdoors, landscapes, cities, weather, time of day.",
    "subject": "Let another object, animal or person stand by it, and say how the two are placed.",
    "action": "Let it do something or let something happen to it.",
    "style": "Vary the medium or the style: painting, sketch, sculpture, film, material, light.",
    "tailored": "Choose contexts that suit this kind of thing and hardly any other: what people do with it, what it "
    'does, where it belongs, as in "a man petting a [v] dog".',
    "property": "Change one of its properties: colour, material, size, age, weather on it, something it wears.",
}


def user_message(concept: str, variation: Variation, count: int, avoid: Sequence[str]) -> str:
    """The request for `count` prompts; `avoid` are existing prompts."""
    lines = [
        f'Write {count} prompts with "{PLACEHOLDER} {concept}" in them.',
        _INSTRUCTIONS[variation],
        f'Set "variation" to "{variation}".',
    ]
    if avoid:
        lines.append("These are there already; write other ones:")
        lines += [f"- {prompt}" for prompt in avoid]
    return "\n".join(lines)
