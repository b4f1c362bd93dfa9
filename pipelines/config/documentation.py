"""Generates `docs/configuration.md` from the types of the sections: `python -m pipelines.config.documentation`.

python -m pipelines.config.documentation            # writes the page
python -m pipelines.config.documentation --check    # exit code 1 when the page is not the generated one
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.config.keys import Key, configuration_keys, fields_of, flat_values, is_section
from pipelines.config.loading import METHOD_DEFAULTS, extended_profile, method_values, profile_names, profile_values
from pipelines.config.words import describe
from stages.compute_config import FOLLOWERS
from stages.config import Config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"

_TABLE_HEAD = ("| key | takes | default | changes | |", "|---|---|---|---|---|")

_HEAD = """# Configuration

This page is generated from the types in `stages/*/config.py`, `stages/shared_config.py` and `model/`; write it again
with `python -m pipelines.config.documentation`.

Every setting has a key, `section.key`, and is set on the command line with `--set key=value`, as often as needed. The
value is YAML, read by the setting's type: text stays text, also in lists (`[en, no]`). A comma separates items unless
quotes or brackets are around it (`["a mug, wet", a [v], toy]`), or what follows could be no item (`[a {word}, wet]`).
`null` switches off what can be switched off. From the weakest to the strongest: the defaults below, the profile
(`--profile`, `pipelines/config/profiles/`), what a method brings with it, `--set`. A setting that is
unknown, of the wrong type or out of range, or that does not fit the others, ends the command with exit code 2 before
anything runs.

A profile that extends another one has that one's values, but for those of its own that the tables show:
{extensions}.

**What it changes.** A setting of the *result* changes what a stage makes: the stage and all that read it run again. A
setting of the *operation* changes only how the result is made (to rounding): nothing runs again, and a stopped training
goes on from its checkpoints. A path that is not absolute starts in the working directory of the command; changed files
are seen, and the stages that read them run again.
"""

_METHODS = """## What a method brings with it

These are set with `train_adapter.method` and `customize.method`, on top of the profile and below `--set`. A profile
that chooses the method itself may hold other values, which win.
"""


def page() -> str:
    """The text of `docs/configuration.md`."""
    extended = {name: extended_profile(name) for name in profile_names()}
    listed = ", ".join(f"`{name}` extends `{other}`" for name, other in extended.items() if other)
    parts = [_HEAD.replace("{extensions}", listed), *_sections(), _METHODS, *_methods()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _sections() -> Iterator[str]:
    profiles = {name: profile_values(name) for name in profile_names()}
    defaults = flat_values(Config())
    for name, kind in fields_of(Config).items():
        if not is_section(kind):
            continue
        keys = [key for key in configuration_keys().values() if key.name.startswith(f"{name}.")]
        rows = [_row(key, defaults[key.name], profiles) for key in keys]
        yield (
            f"## {name}\n\n{_text(kind.__doc__)}\n\n| key | takes | default | changes | |\n|---|---|---|---|---|\n"
            + ("\n".join(rows))
        )


def _row(key: Key, default: Any, profiles: dict[str, dict[str, Any]]) -> str:
    followed = next((name for name, followers in FOLLOWERS.items() if key.name in followers), None)
    values = [f"that of `{followed}`" if followed else f"`{_yaml(default)}`"]
    for name, found in profiles.items():
        inherited = profiles.get(extended_profile(name) or "", {})
        before = inherited.get(key.name, None if followed else default)
        if key.name in found and (found[key.name] != before or (followed and key.name not in inherited)):
            values.append(f"{name}: `{_yaml(found[key.name])}`")
    changes = "operation" if key.of_operation else "result"
    cells = (f"`{key.name}`", describe(key.type), "; ".join(values), changes, key.description)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _methods() -> Iterator[str]:
    for setting, methods in METHOD_DEFAULTS.items():
        for method, values in methods.items():
            brought = {name: {**values, **method_values(name, method)} for name in profile_names()}
            inherited = {name: brought.get(extended_profile(name) or "", {}) for name in brought}
            keys = dict.fromkeys(key for found in brought.values() for key in found)
            if keys:
                lines = [f"| `{key}` | {_of_profiles(key, brought, inherited)} |" for key in keys]
                yield "\n".join([f"`{setting}={method}`:\n", "| key | value |", "|---|---|", *lines])


def _of_profiles(key: str, brought: Mapping[str, Mapping[str, Any]], inherited: Mapping[str, Mapping[str, Any]]) -> str:
    """The values that a method brings with it, with the profiles' names where they differ."""
    texts = {name: f"`{_yaml(values[key])}`" for name, values in brought.items() if key in values}
    if len(texts) == len(brought) and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    own = {name: text for name, text in texts.items() if inherited[name].get(key) != brought[name][key]}
    return "; ".join(f"{name}: {text}" for name, text in own.items())


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _text(docstring: str | None) -> str:
    return "\n".join(line.strip() for line in (docstring or "").strip().splitlines())


def main() -> int:
    """Write the page, or compare it with the one that is there."""
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text() == page():
            return 0
        print(f"{PAGE} is out of date: write it with python -m pipelines.config.documentation", file=sys.stderr)
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
