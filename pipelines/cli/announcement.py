"""What `run` prints before it starts: what will be done, where the results go, and how long it is expected to take."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pipelines.config.loading import config_to_dict, load_config
from pipelines.plan import Action, Step
from pipelines.store.store import Output, Store
from stages.config import Config

#: Seconds of each stage in one measured run of the unchanged profile micro on two cores; some stages run side by side.
MICRO_SECONDS = {
    "microworld": 25,
    "ingest": 10,
    "filter": 9,
    "multiview": 5,
    "curriculum": 5,
    "prompts": 2,
    "base": 5,
    "train_adapter": 296,
    "contextualizer": 92,
    "customize": 50,
    "evaluate": 79,
    "register": 6,
}

#: What a run is for, by the last stage that it runs.
_PURPOSES = {
    "microworld": "generate the pictures of the micro world",
    "ingest": "download pictures",
    "filter": "select the pictures to train on",
    "multiview": "pair views of the same subjects",
    "curriculum": "plan the training steps",
    "prompts": "write context-rich prompts",
    "base": "prepare the base model",
    "cache_latents": "encode the training pictures",
    "train_adapter": "train the adapter",
    "contextualizer": "train the contextualizer",
    "customize": "learn concepts from pictures of their subjects",
    "evaluate": "paint and score with what has been learned",
    "register": "train a model that paints a subject from a sentence, and register it for serving",
}


def announce(config: Config, store: Store, plan: Sequence[Step]) -> str:
    """At most four lines about a run that is about to start."""
    names = [step.stage.name for step in plan if step.action is Action.RUN]
    purpose = _PURPOSES.get(names[-1], f"make the output of {names[-1]}")
    lines = [
        f"To {purpose}, {len(names)} of {len(plan)} stages run:",
        f"  {', '.join(names)}.",
        f"Results go to {store.folder}. When you stop the run (Ctrl-C), the same command continues it.",
        expected_time(names, config, store.latest_outputs()),
    ]
    return "\n".join(line for line in lines if line)


def expected_time(names: Sequence[str], config: Config, earlier: Mapping[str, Output]) -> str:
    """How long the stages take: as their `earlier` outputs in the run folder took, else as measured; "" if unknown."""
    past = [
        output.manifest.seconds for name in names if (output := earlier.get(name)) and not output.damage(thorough=False)
    ]
    if len(past) == len(names):
        return f"Last time these stages took {_duration(sum(past))}, added up."
    if _is_default(config):
        seconds = sum(MICRO_SECONDS[name] for name in names)
        return f"Expected time: {_duration(seconds)} on two idle cores (this machine has {os.cpu_count()})."
    return ""


def _is_default(config: Config) -> bool:
    """Whether this is the profile micro with nothing changed that could change a stage's time."""
    values, default = config_to_dict(config), config_to_dict(load_config("micro"))
    return all(values[section] == default[section] for section in default if section != "run")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"
