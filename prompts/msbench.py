"""MS-Bench's combinations of two and three subjects (Wang et al. 2025, MS-Diffusion): class words and prompts.

`{0}`, `{1}` and `{2}` stand for the class words of the subjects.
"""

from __future__ import annotations

CLASS_WORDS = (
    "backpack", "cat", "clock", "sneaker", "dog", "toy", "stuffed animal", "teapot", "lantern", "flower", "forest",
    "mountain", "barn", "waterfall", "cap", "hat", "dress", "shorts", "trousers", "jeans", "coat", "jacket", "t-shirt",
    "shirt", "sweater",
)  # fmt: skip

_PLACES = ("in a room", "in the snow", "in the jungle", "on the beach", "on the grass", "on a cobblestone street")
_SUBJECTS = (
    "a {0} and a {1}",
    "a {0} wearing a {1}",
    "a woman wearing a {0} and {1}",
    "a {0}, a {1}, and a {2}",
    "a woman wearing a {0}, a {1}, and a {2}",
)

MSBENCH_PROMPTS = (
    *(f"{subjects} {place}" for subjects in _SUBJECTS for place in _PLACES),
    "a {0} with a {1} in the background",
    "a {0} and {1} with a {2} in the background",
)
