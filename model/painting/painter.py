"""The painter of encoded requests: subjects' files in, files of the pictures and their masks out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.guidance.schedule import subject_steps
from model.guidance.settings import InferenceSettings
from model.guidance.subjects import Subject
from model.painting.preparation import (
    SubjectReader,
    check_length,
    check_words,
    field_errors,
    inference_settings,
    picture_size,
)
from model.painting.request import PaintedPicture, PictureRequest, PreparedRequest, preview_steps
from model.pictures.provenance import PictureFormat, Provenance, encode_with_provenance, png_with_provenance
from model.pictures.tensors import mask_picture, to_pictures
from model.pipeline import RealCustomPipeline

_MASK_SIDE = 256

#: Called during painting with the number of a picture in the batch, and its preview.
ShowPreview = Callable[[int, PaintedPicture], None]


@dataclass(frozen=True, kw_only=True)
class RequestPainter:
    """Paints requests.

    Attributes:
        pipeline: With an adapter.
        settings: The defaults of the inference.
        title: How painted pictures name the model in their metadata; None for one without a name.
        adapter: The adapter's fingerprint.
    """

    pipeline: RealCustomPipeline
    settings: InferenceSettings
    title: str | None
    adapter: str

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
        **options: Any,
    ) -> PreparedRequest:
        """Validate a request, so that `paint` does not fail because of it.

        Args:
            prompt: What to paint.
            subjects: See `SubjectReader.read`; none: paint from text alone.
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
            **options: Replace the default settings.

        Raises:
            RequestFieldError: The word is not in the prompt (lists its words), a file is no picture, the model cannot
                paint this size, or options do not fit together.
        """
        grid = picture_size(self.pipeline, size)
        settings = inference_settings(self.pipeline, self.settings, **options)
        if whole_prompt:
            check_length(self.pipeline, "prompt", prompt)
            check_length(self.pipeline, "negative_prompt", negative_prompt or "")
        guidance: dict[str, Any] = {
            "use_mask": use_mask,
            "visual_guidance_start": visual_guidance_start,
            "visual_guidance_end": visual_guidance_end,
        }
        reader = SubjectReader(grid)
        read = [reader.read(number, given) for number, given in enumerate(subjects, 1)]
        named = tuple(subject for subject, _ in read)
        self._check(prompt, named, settings, grid, guidance)
        pictures = [
            PictureRequest(
                subjects=named,
                size=grid,
                provenance=Provenance(
                    prompt=prompt,
                    seed=seed,
                    subjects=tuple(made for _, made in read),
                    model=self.title,
                    adapter=self.adapter,
                    settings=settings,
                    negative_prompt=negative_prompt,
                    **guidance,
                ),
                preview_steps=preview_steps(settings.steps, previews),
                output_format=output_format,
                output_compression=output_compression,
                mark_generated=mark_generated,
            )
            for seed in seeds
        ]
        encoders, scale = self.pipeline.image_encoders, self.pipeline.backbone.latent_scale
        return PreparedRequest(
            pictures=pictures,
            cut_off=self.pipeline.backbone.cut_off(prompt),
            text_tokens=self.pipeline.backbone.token_count(prompt),
            reference_tokens=len(reader.pictures) * (0 if encoders is None else encoders.patches),
            picture_tokens=(grid[0] // scale) * (grid[1] // scale),
        )

    def _check(
        self,
        prompt: str,
        subjects: Sequence[Subject],
        settings: InferenceSettings,
        size: tuple[int, int],
        guidance: Mapping[str, Any],
    ) -> None:
        """Name the field in what the pipeline refuses."""
        with field_errors("prompt"):
            self.pipeline.check(prompt, [], settings=settings, size=size)
        check_words(self.pipeline, prompt, subjects)
        with field_errors("visual_guidance_start"):
            subject_steps(settings.steps, guidance["visual_guidance_start"], guidance["visual_guidance_end"])
        with field_errors("subjects"):
            self.pipeline.check(prompt, subjects, settings=settings, size=size, **guidance)

    def paint(self, requests: Sequence[PictureRequest], show: ShowPreview | None = None) -> list[PaintedPicture]:
        """Paint pictures; those that one call of the pipeline can paint are painted together.

        Args:
            requests: Pictures of any prepared requests.
            show: Gets the previews that the requests ask for.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[request.batch_key].append(number)
        painted: dict[int, PaintedPicture] = {}
        for numbers in groups.values():
            painted |= self._paint_group({number: requests[number] for number in numbers}, show)
        return [painted[number] for number in range(len(requests))]

    def _paint_group(
        self, requests: Mapping[int, PictureRequest], show: ShowPreview | None
    ) -> dict[int, PaintedPicture]:
        made = [request.provenance for request in requests.values()]
        height, width = next(iter(requests.values())).size
        output = self.pipeline(
            [one.prompt for one in made],
            [request.subjects for request in requests.values()] if made[0].subjects else None,
            settings=made[0].settings,
            negative_prompt=made[0].negative_prompt,
            use_mask=made[0].use_mask,
            visual_guidance_start=made[0].visual_guidance_start,
            visual_guidance_end=made[0].visual_guidance_end,
            height=height,
            width=width,
            seeds=[one.seed for one in made],
            callback_on_step_end=None if show is None else _Previews(requests, show),
        )
        return {
            number: _encoded(requests[number], image, masks[-1] if masks else None, output.timings)
            for number, image, masks in zip(requests, output.images, output.masks, strict=True)
        }


@dataclass(frozen=True)
class _Previews:
    """Shows previews after the steps in which requests of a batch ask for one: a callback of the pipeline."""

    requests: Mapping[int, PictureRequest]
    show: ShowPreview

    def __call__(
        self, pipeline: RealCustomPipeline, step: int, timestep: Tensor, state: dict[str, Any]
    ) -> dict[str, Any]:
        asked = [
            (row, number, request)
            for row, (number, request) in enumerate(self.requests.items())
            if step in request.preview_steps
        ]
        if asked:
            clean = state["clean"][[row for row, _, _ in asked]]
            images = to_pictures(pipeline.backbone.decode_latents(clean) / 2 + 0.5)
            for (row, number, request), image in zip(asked, images, strict=True):
                masks = None if state["masks"] is None else state["masks"][row, : len(request.subjects)]
                self.show(number, _encoded(request, image, masks, {}))
        return {}


def _encoded(request: PictureRequest, image: Any, masks: Tensor | None, timings: dict[str, float]) -> PaintedPicture:
    made, mark = request.provenance, request.mark_generated
    picture = encode_with_provenance(
        image, made, request.output_format, request.output_compression, mark_generated=mark
    )
    drawn = None if masks is None else mask_picture(masks, _MASK_SIDE)
    mask = None if drawn is None else png_with_provenance(drawn, made, mark_generated=mark)
    return PaintedPicture(picture=picture, mask=mask, timings=timings)
