"""Pictures of a class for prior preservation (DreamBooth, Sec. 3.3): painted by the base model, or from a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model.backbone import load_backbone
from model.files import printable_name
from model.guidance.settings import InferenceSettings
from model.pictures.crops import square_crop
from model.pictures.decoding import PictureError, load_picture, picture_files, to_png
from model.pipeline import RealCustomPipeline
from model.seeding import seed_of
from stages.contract import StageContext, StageError
from stages.customize.painting_task import Device, results_of
from stages.inference import backbone_location, backbone_setting, model_errors_as_stage_errors, on_this_machine
from stages.storage import StorePath, read_files, write_whole


@dataclass(frozen=True, kw_only=True)
class ClassJob:
    """Pictures to paint, by number."""

    backbone: str
    device: Device
    word: str
    numbers: tuple[int, ...]
    batch_size: int
    seed: int
    settings: InferenceSettings
    setting: str  # that the backbone is of


def class_pictures(words: Iterable[str], context: StageContext) -> dict[str, tuple[bytes, ...]]:
    """For each class word `customize.prior_pictures` PNGs, squares of the backbone's resolution; none without a prior.

    Painted ones are kept in the scratch folder: an interrupted stage paints the missing ones only.

    Raises:
        StageError: There is no picture in `customize.prior_folder`.
    """
    config = context.config.customize
    if not config.prior_weight:
        return dict.fromkeys(words, ())
    if config.prior_folder is not None:
        pictures = _from_folder(Path(config.prior_folder), config.prior_pictures, context)
        return dict.fromkeys(words, pictures)
    return {word: _painted(word, context) for word in dict.fromkeys(words)}


def _painted(word: str, context: StageContext) -> tuple[bytes, ...]:
    config = context.config.customize
    folder = context.scratch / "class" / str(config.words.index(word))
    painted = {file.name for file in folder.glob("*.png")}
    missing = tuple(number for number in range(config.prior_pictures) if _file(folder, number).name not in painted)
    if missing:
        _paint(word, missing, folder, context)
    files = [_file(folder, number) for number in range(config.prior_pictures)]
    return tuple(read_files(files))


def _file(folder: StorePath, number: int) -> StorePath:
    return folder / f"{number:05d}.png"


def _from_folder(folder: Path, count: int, context: StageContext) -> tuple[bytes, ...]:
    pictures: list[bytes] = []
    for path in picture_files(folder) if folder.is_dir() else []:
        if len(pictures) == count:
            break
        try:
            pictures.append(to_png(square_crop(load_picture(path), 0.5, 0.5, context.config.backbone.resolution)))
        except PictureError as error:
            context.report.warning(f"left out of customize.prior_folder: {error}")
    if not pictures:
        raise StageError(f"customize.prior_folder: {printable_name(folder)} holds no picture that can be read.")
    return tuple(pictures)


def _paint(word: str, numbers: tuple[int, ...], folder: StorePath, context: StageContext) -> None:
    job = ClassJob(
        backbone=backbone_location(context.config.backbone, context.inputs),
        device=Device.of(context.config),
        word=word,
        numbers=numbers,
        batch_size=context.config.evaluate.batch_size,
        seed=context.config.run.seed,
        settings=context.config.customize.scoring.inference,
        setting=backbone_setting(context.config.backbone),
    )
    note = f"painting pictures of the class {word}"
    context.report.progress(0, len(numbers), note)
    with model_errors_as_stage_errors():
        for done, (number, picture) in enumerate(results_of(paint_class, job, context.config), 1):
            write_whole(_file(folder, number), picture)
            context.report.progress(done, len(numbers), note)


def paint_class(job: ClassJob) -> Iterator[tuple[int, bytes]]:
    """Each number with its picture; a picture depends on the seed and the number only."""
    backbone = on_this_machine(job.backbone, job.setting)
    pipeline = RealCustomPipeline(load_backbone(backbone, job.device.dtype, job.device.name))
    for start in range(0, len(job.numbers), job.batch_size):
        numbers = job.numbers[start : start + job.batch_size]
        seeds = [seed_of(job.seed, number) for number in numbers]
        output = pipeline([f"a photo of a {job.word}"] * len(numbers), seeds=seeds, settings=job.settings)
        for number, picture in zip(numbers, output.images, strict=True):
            yield number, to_png(picture)
