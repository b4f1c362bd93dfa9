"""The painter of encoded requests: subjects' files in, files of the pictures and their masks out.

`paint` takes all steps of some requests. A server takes them one by one, for whatever pictures are running then:

    running = [painter.start(picture) for picture in painter.prepare(prompt, subjects, seeds).pictures]
    painter.step(running)
    painter.preview(running[0])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from PIL import Image

from model.adapters.encoding_cache import EncodingCache
from model.dci.auxiliary_branch import auxiliary_steps
from model.dci.settings import DCISettings
from model.guidance.schedule import subject_steps
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject
from model.painting.concepts import Concepts, concepts_key
from model.painting.preparation import (
    ReadSubject,
    SubjectReader,
    check_length,
    check_words,
    field_errors,
    inference_settings,
    picture_size,
)
from model.painting.request import (
    UNSAFE,
    PaintedPicture,
    PictureRequest,
    PreparedRequest,
    RequestFieldError,
    UnsafePictureError,
    preview_steps,
)
from model.painting.running_picture import RunningPicture
from model.painting.words import WordFinder
from model.pictures.provenance import PictureFormat, Provenance
from model.pictures.tensors import to_pictures, to_tensor
from model.pipeline import RealCustomPipeline
from model.scoring.metrics import ClipScorer
from model.scoring.safety import SAFETY_THRESHOLD, SafetyScorer


@dataclass(kw_only=True)
class RequestPainter:
    """Paints requests.

    Attributes:
        pipeline: With an adapter.
        settings: The defaults of the inference.
        title: How painted pictures name the model in their metadata; None for one without a name.
        adapter: The adapter's fingerprint.
        safety: Refuses pictures that come in and that are painted; None: nothing is refused.
        clip: Loads a CLIP, which finds the words of subjects that have none; None: such requests are refused.
        concepts: Learned concepts that requests can name; none at first.
    """

    pipeline: RealCustomPipeline
    settings: InferenceSettings
    title: str | None
    adapter: str
    safety: SafetyScorer | None = None
    clip: Callable[[], ClipScorer] | None = None
    concepts: Concepts = field(init=False)

    def __post_init__(self) -> None:
        self.concepts = Concepts(self.pipeline)

    def prepare(
        self,
        prompt: str,
        subjects: Sequence[Mapping[str, Any]] = (),
        seeds: Sequence[int] = (0,),
        *,
        size: tuple[int, int] | None = None,
        negative_prompt: str | None = None,
        whole_prompt: bool = False,
        use_mask: bool = True,
        visual_guidance_start: float = 0.0,
        visual_guidance_end: float = 1.0,
        output_format: PictureFormat = "png",
        output_compression: int | None = None,
        mark_generated: bool = True,
        previews: int = 0,
        concepts: Sequence[str] = (),
        dci_lambda: float | None = None,
        dci_auxiliary_noun: str | None = None,
        dci_share: float | None = None,
        **options: Any,
    ) -> PreparedRequest:
        """Validate a request, so that `paint` does not fail because of it.

        Args:
            prompt: What to paint.
            subjects: See `SubjectReader.read`; none: paint from text alone. Words are found for those without word and
                mask.
            seeds: Of the initial noise, one for each picture.
            size: Width and height, pixels; None: the backbone's resolution.
            negative_prompt: Of the unconditional rows.
            whole_prompt: Refuse prompts whose end the text encoder would leave out.
            use_mask: False lets the subjects act on the whole picture.
            visual_guidance_start: Share of the steps before the subjects start to act.
            visual_guidance_end: Share of the steps after which they stop.
            output_format: Of the pictures' files; masks are PNGs.
            output_compression: Quality from 0 to 100 of WebP and JPEG; None: 100.
            mark_generated: The files say in IPTC's terms that a model has made the pictures.
            previews: How many to show of each picture while it is painted.
            concepts: Learned concepts that the prompt names, from `RequestPainter.concepts`.
            dci_lambda: DCI's lambda; with one of these three settings the concept's context has a second branch.
            dci_auxiliary_noun: The common noun of that branch.
            dci_share: Share of the steps in which there are two branches.
            **options: Replace the default settings.

        Raises:
            RequestFieldError: The word is not in the prompt (lists its words), a file is no picture, the model cannot
                paint this size, or options do not fit together.
        """
        chosen = self.concepts.choose(concepts, prompt)
        pipeline = chosen.pipeline
        grid = picture_size(pipeline, size)
        settings = inference_settings(pipeline, self.settings, **options)
        dci = chosen.dci(prompt, dci_lambda, dci_auxiliary_noun, dci_share)
        if whole_prompt:
            check_length(pipeline, "prompt", prompt)
            check_length(pipeline, "negative_prompt", negative_prompt or "")
        guidance: dict[str, Any] = {
            "use_mask": use_mask,
            "visual_guidance_start": visual_guidance_start,
            "visual_guidance_end": visual_guidance_end,
        }
        reader = SubjectReader(grid)
        read = [reader.read(number, given) for number, given in enumerate(subjects, 1)]
        if use_mask:
            read = self._with_words(read, prompt, chosen.phrases)
        named = tuple(subject for subject, _ in read)
        self._check_safety(named)
        _check(pipeline, prompt, named, settings, grid, guidance, dci)
        pictures = [
            PictureRequest(
                subjects=named,
                size=grid,
                concepts=chosen.concepts,
                provenance=Provenance(
                    prompt=prompt,
                    seed=seed,
                    subjects=tuple(made for _, made in read),
                    model=self.title,
                    adapter=self.adapter,
                    settings=settings,
                    negative_prompt=pipeline.backbone.negative_prompt if negative_prompt is None else negative_prompt,
                    concepts=tuple(concepts),
                    dci=dci,
                    **guidance,
                ),
                preview_steps=preview_steps(settings.steps, previews),
                output_format=output_format,
                output_compression=output_compression,
                mark_generated=mark_generated,
            )
            for seed in seeds
        ]
        encoders, scale = pipeline.image_encoders, pipeline.backbone.latent_scale
        return PreparedRequest(
            pictures=pictures,
            words=[subject.word for subject in named],
            cut_off=pipeline.backbone.cut_off(prompt),
            text_tokens=pipeline.backbone.token_count(prompt),
            reference_tokens=len(reader.pictures) * (0 if encoders is None else encoders.patches),
            picture_tokens=(grid[0] // scale) * (grid[1] // scale),
        )

    def _check_safety(self, subjects: Sequence[Subject]) -> None:
        for number, subject in enumerate(subjects, 1):
            if self._is_unsafe(subject.picture):
                raise RequestFieldError("picture", f"the safety checker refuses picture {number}.", UNSAFE)

    def _is_unsafe(self, picture: Image.Image) -> bool:
        if self.safety is None:
            return False
        view = self.safety.picture_input(to_tensor(picture.convert("RGB"))[None])
        return bool(self.safety(view).item() > SAFETY_THRESHOLD)

    @cached_property
    def _word_finder(self) -> WordFinder | None:
        try:
            return None if self.clip is None else WordFinder(self.clip())
        except (OSError, ValueError):  # a CLIP from the hub that is not there; words must be named then
            return None

    def _with_words(self, read: Sequence[ReadSubject], prompt: str, taken: Sequence[str]) -> list[ReadSubject]:
        """Find the words of subjects that have none and need one, but not those of concepts."""
        without = [number for number, (subject, _) in enumerate(read) if subject.word is None and subject.mask is None]
        if not without:
            return list(read)
        if self._word_finder is None:
            raise RequestFieldError("word", "which word of the prompt a picture stands for is not said.")
        taken = [*taken, *(subject.word for subject, _ in read if subject.word is not None)]
        pictures = [read[number][0].picture for number in without]
        found = list(read)
        for number, word in zip(without, self._word_finder.find(prompt, pictures, taken), strict=True):
            subject, made = read[number]
            found[number] = replace(subject, word=word), replace(made, word=word)
        return found

    def use_safety_checker(self, name: str) -> None:
        """Refuse pictures that Stable Diffusion's safety checker refuses; see `SafetyScorer.from_pretrained`."""
        self.safety = SafetyScorer.from_pretrained(name).to(self.pipeline.backbone.device)

    def cache_encodings(self, max_bytes: int) -> None:
        """Keep the encodings of subjects' pictures for later requests; see `EncodingCache`."""
        if self.pipeline.image_encoders is not None:
            self.pipeline.image_encoders.cache = EncodingCache(max_bytes)

    def start(self, request: PictureRequest) -> RunningPicture:
        """Encode a request for a picture, without a step."""
        made = request.provenance
        height, width = request.size
        cache = None if self.pipeline.image_encoders is None else self.pipeline.image_encoders.cache
        before = (0, 0) if cache is None else (cache.hits, cache.misses)
        with self.concepts.using(request.concepts):
            run = self.pipeline.start(
                made.prompt,
                [request.subjects] if request.subjects else None,
                settings=made.settings,
                dci=made.dci,
                negative_prompt=made.negative_prompt,
                use_mask=made.use_mask,
                visual_guidance_start=made.visual_guidance_start,
                visual_guidance_end=made.visual_guidance_end,
                height=height,
                width=width,
                seeds=[made.seed],
            )
        after = (0, 0) if cache is None else (cache.hits, cache.misses)
        return RunningPicture(request, run, after[0] - before[0], after[1] - before[1])

    def step(self, pictures: Sequence[RunningPicture]) -> None:
        """Take the next step of each picture; see `model.guidance.runs.take_step`.

        Pictures with the same concepts take it together, first those whose concepts are in the model already.
        """
        by_concepts: dict[tuple[int, ...], list[RunningPicture]] = {concepts_key(self.concepts.loaded): []}
        for picture in pictures:
            by_concepts.setdefault(concepts_key(picture.request.concepts), []).append(picture)
        for own in by_concepts.values():
            if own:
                with self.concepts.using(own[0].request.concepts):
                    self.pipeline.step([picture.run for picture in own])

    def preview(self, picture: RunningPicture) -> PaintedPicture | None:
        """The finished picture as the last step predicts it, if the request asks for a preview after this step."""
        if picture.run.steps_taken - 1 not in picture.request.preview_steps:
            return None
        latents, masks = picture.run.clean_latents(), picture.run.masks()
        (image,) = to_pictures(self.pipeline.backbone.decode_latents(latents) / 2 + 0.5)
        if self._is_unsafe(image):
            return None
        return picture.encoded(image, None if masks is None else masks[0])

    def finish(self, picture: RunningPicture) -> PaintedPicture:
        """Decode a picture that has taken all steps.

        Raises:
            UnsafePictureError: The safety checker refuses it.
        """
        output = self.pipeline.finish(picture.run)
        ((image,), (masks,)) = output.images, output.masks
        if self._is_unsafe(image):
            raise UnsafePictureError("the safety checker refuses the painted picture; try another seed or prompt.")
        return picture.encoded(image, masks[-1] if masks else None)

    def paint(self, requests: Sequence[PictureRequest]) -> list[PaintedPicture]:
        """Paint pictures of any prepared requests together."""
        pictures = [self.start(request) for request in requests]
        while running := [picture for picture in pictures if not picture.is_finished]:
            self.step(running)
        return [self.finish(picture) for picture in pictures]


def _check(
    pipeline: RealCustomPipeline,
    prompt: str,
    subjects: Sequence[Subject],
    settings: InferenceSettings,
    size: tuple[int, int],
    guidance: Mapping[str, Any],
    dci: DCISettings | None,
) -> None:
    """Name the field in what the pipeline refuses."""
    with field_errors("prompt"):
        pipeline.check(prompt, [], settings=settings, size=size)
    check_words(pipeline, prompt, subjects)
    with field_errors("visual_guidance_start"):
        subject_steps(settings.steps, guidance["visual_guidance_start"], guidance["visual_guidance_end"])
    if dci is not None:
        with field_errors("dci_share"):
            auxiliary_steps(pipeline.scheduler_of(settings, "cpu"), dci)
    with field_errors("dci_auxiliary_noun"):
        pipeline.check(prompt, [], settings=settings, size=size, dci=dci)
    with field_errors("subjects"):
        pipeline.check(prompt, subjects, settings=settings, size=size, dci=dci, **guidance)
