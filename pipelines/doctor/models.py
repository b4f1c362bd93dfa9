"""The models that a run loads, each with the setting that names it and the files that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.backbone_layout import check_backbone_files, check_model_files
from model.errors import ModelError
from model.pretrained import split_revision
from pipelines.doctor.findings import Setup

_WEIGHTS = ("{}.safetensors", "{}.fp16.safetensors", "{}.safetensors.index.json")
_PICKLED = "pytorch_model.bin"
_MICRO = "micro"  # the CLIP that ships with the code


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model.

    Attributes:
        setting: Names it.
        location: A folder or a hub id.
        files: Of each group it needs one file.
        part: The subfolder of the location that is loaded; "": the location itself.
        is_backbone: It has diffusers' layout.
        takes_pickled: Its weights may be pickled (safely read).
    """

    setting: str
    location: str
    files: Sequence[Sequence[str]]
    part: str = ""
    is_backbone: bool = False
    takes_pickled: bool = False

    @property
    def download(self) -> str:
        """The command that puts its files into the hub's cache, without the copies in one file that backbones have."""
        parts = " --include model_index.json '*/*.json' '*/*.txt' '*/*.safetensors'"
        name, options = split_revision(self.location)
        revision = "".join(f" --revision {revision}" for revision in options.values())
        return f"hf download {name}{revision}{parts if self.is_backbone or self.part else ''}"

    def check(self, folder: Path) -> None:
        """Check that a folder has all that is loaded.

        Raises:
            ModelError: It has not.
        """
        if self.is_backbone:
            check_backbone_files(folder)
        else:
            check_model_files(folder, self.part, takes_pickled=self.takes_pickled)
        if not self.is_backbone and not self.part:
            from model.adapters.vision_models import normalization  # imports torch

            normalization(str(folder))


def needed_models(setup: Setup) -> Iterator[Model]:
    """The models of the stages of a run, and of `serve`; those that come with the code or from a stage are left out."""
    backbone = setup.config.backbone
    if backbone.weights is not None:
        files = (("unet/config.json",), _weights("unet/diffusion_pytorch_model"))
        yield Model(setting="backbone.weights", location=backbone.weights, files=files, is_backbone=True)
    if setup.reads("backbone.image_encoders"):
        for name in backbone.image_encoders:
            if not is_part(name):
                yield _transformer("backbone.image_encoders", name)
    if setup.reads("filter.scoring.similarity_clip"):
        yield from _scorers(setup)
    yield from _metrics(setup)
    if setup.config.serve.safety_checker is not None:
        yield _safety_checker("serve.safety_checker", setup.config.serve.safety_checker)


def is_path(location: str) -> bool:
    """Whether a location is a folder, not a hub id."""
    return location.startswith((".", "/", "~")) or Path(location).exists()


def is_part(name: str) -> bool:
    """Whether a name is a subfolder of the backbone."""
    return "/" not in name


def _parts(setup: Setup) -> Iterator[tuple[str, str]]:
    """The subfolders of the backbone that stages load as models, each with the setting that names it."""
    config = setup.config
    named = [("backbone.image_encoders", name) for name in config.backbone.image_encoders]
    named.append(("evaluate.clip", config.evaluate.clip))
    return ((key, name) for key, name in named if setup.reads(key) and is_part(name))


def missing_parts(setup: Setup) -> Iterator[tuple[str, Path]]:
    """The subfolders that a backbone on this machine lacks, each with the setting that names it."""
    backbone = Path(setup.config.backbone.weights or "")
    if setup.config.backbone.weights is not None and backbone.is_dir():
        yield from ((key, backbone / name) for key, name in _parts(setup) if not (backbone / name).is_dir())


def _scorers(setup: Setup) -> Iterator[Model]:
    """Those that compute the scores which some sample's metadata lack."""
    from stages.filter.rules import COMPUTABLE, computed_scores  # imports NumPy

    settings = setup.config.filter
    for score in sorted(computed_scores(settings)):
        key = {"aesthetic": "aesthetic_clip"}.get(score, COMPUTABLE[score])
        location = getattr(settings.scoring, key)
        if key == "safety_checker":
            yield _safety_checker(f"filter.scoring.{key}", location)
        elif location != _MICRO:
            yield _clip(f"filter.scoring.{key}", location)


def _metrics(setup: Setup) -> Iterator[Model]:
    settings = setup.config.evaluate
    if setup.reads("evaluate.clip") and not is_part(settings.clip):
        yield _clip("evaluate.clip", settings.clip)
    if setup.reads("evaluate.dino") and settings.similarity == "dino":
        files = (("config.json",), (*_weights("model"), _PICKLED))
        yield Model(setting="evaluate.dino", location=settings.dino, files=files, takes_pickled=True)


def _transformer(setting: str, location: str) -> Model:
    return Model(setting=setting, location=location, files=(("config.json",), _weights("model")))


def _clip(setting: str, location: str) -> Model:
    files = (("config.json",), ("tokenizer.json", "vocab.json"), (*_weights("model"), _PICKLED))
    return Model(setting=setting, location=location, files=files, takes_pickled=True)


def _safety_checker(setting: str, location: str) -> Model:
    files = (("safety_checker/config.json",), _weights("safety_checker/model"))
    return Model(setting=setting, location=location, files=files, part="safety_checker")


def _weights(stem: str) -> tuple[str, ...]:
    return tuple(form.format(stem) for form in _WEIGHTS)


def model_error(model: Model, folder: Path) -> str | None:
    """Why a model cannot be loaded from a folder; None: all its files are there."""
    try:
        model.check(folder)
    except ModelError as error:
        return str(error).rstrip(".")
    lacking = [group for group in model.files[1:-1] if not any((folder / file).is_file() for file in group)]
    if lacking and not model.is_backbone:
        return f"{folder} lacks {' or '.join(lacking[0])}; download the whole model"
    return None
