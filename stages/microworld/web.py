"""The micro world's web: good and bad pictures with LAION-shaped metadata."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from model.microworld.captions import CaptionShares
from model.microworld.scenes import SceneShares, SceneSpec, draw_specs, render_scenes
from stages.contract import Reporter, StageError
from stages.data.loopback import HOST
from stages.data.schemas import content_id
from stages.microworld.config import MicroworldConfig

METADATA = pa.schema(
    [
        ("URL", pa.string()),
        ("TEXT", pa.string()),
        ("WIDTH", pa.int64()),
        ("HEIGHT", pa.int64()),
        ("similarity", pa.float64()),
        ("punsafe", pa.float64()),
        ("pwatermark", pa.float64()),
        ("AESTHETIC_SCORE", pa.float64()),
    ]
)

GROUPS = {  # the kinds of bad rows, by the share of the configuration that sets their number
    "dead": ("not_found", "refused"),
    "broken": ("truncated", "not_a_picture", "empty"),
    "duplicate": ("copy", "near_copy", "same_row"),
    "tiny": ("tiny",),
    "poor": ("aesthetic", "similarity", "unsafe", "watermark", "caption_words", "wide", "very_wide", "small"),
}
_NOT_RENDERED = {"not_found", "refused", "not_a_picture", "empty", *GROUPS["duplicate"]}
_FRAME_SCALES = (1.0, 1.25, 1.5)  # web pictures differ in size
_PICTURES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Scores:
    """LAION's scores of one row."""

    similarity: float
    unsafe: float
    watermark: float
    aesthetic: float


def draw_kinds(settings: MicroworldConfig, rng: np.random.Generator) -> list[str]:
    """The kind of each row: "good" or one of `GROUPS`. The counts follow the shares exactly."""
    kinds: list[str] = []
    for group, members in GROUPS.items():
        count = round(getattr(settings, f"{group}_share") * settings.pictures)
        kinds += [members[number % len(members)] for number in range(count)]
    if len(kinds) >= settings.pictures:
        raise StageError(
            f"the microworld's shares leave no good picture: {len(kinds)} of {settings.pictures} rows are to be bad; "
            "lower the shares or raise microworld.pictures."
        )
    kinds += ["good"] * (settings.pictures - len(kinds))
    return [kinds[index] for index in rng.permutation(len(kinds))]


def draw_scores(kind: str, rng: np.random.Generator) -> Scores:
    """Scores like those of a crawl: all depend on one hidden quality, and good rows pass LAION's usual thresholds.

    A row that is poor in one score has a low quality, and that score is on the wrong side of its threshold.
    """
    quality = rng.normal() if kind not in GROUPS["poor"] else rng.normal() - 1.0
    noise = rng.normal(size=4)
    similarity = float(np.clip(0.315 + 0.02 * quality + 0.015 * noise[0], 0.265, 0.45))
    unsafe = float(np.clip(_logistic(-3.5 - 0.3 * quality + noise[1]), 0.0, 0.45))
    watermark = float(np.clip(_logistic(-1.6 - 0.5 * quality + noise[2]), 0.0, 0.75))
    aesthetic = float(np.clip(5.9 + 0.45 * quality + 0.25 * noise[3], 5.05, 8.0))
    low, high = rng.random(2)
    return Scores(
        similarity=0.12 + 0.13 * low if kind == "similarity" else similarity,
        unsafe=0.55 + 0.45 * high if kind == "unsafe" else unsafe,
        watermark=0.82 + 0.18 * high if kind == "watermark" else watermark,
        aesthetic=3.2 + 1.7 * low if kind == "aesthetic" else aesthetic,
    )


def _logistic(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def encode(picture: Image.Image, quality: int = 92) -> bytes:
    """Encode a picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def frame_side(kind: str, picture_size: int, rng: np.random.Generator) -> int:
    """The side, in pixels, at which the scene of a row is rendered before `finish` cuts it."""
    scale = {"wide": 2.5, "very_wide": 3.6}.get(kind) or float(rng.choice(_FRAME_SCALES))
    return round(picture_size * scale)


def finish(kind: str, picture: Image.Image, picture_size: int, rng: np.random.Generator) -> bytes:
    """Encode the rendered scene as the file of a row, with the defect of its kind."""
    if kind in ("wide", "very_wide"):  # the middle band
        top = (picture.height - picture_size) // 2
        picture = picture.crop((0, top, picture.width, top + picture_size))
    if kind == "tiny":
        picture = picture.resize((int(rng.integers(6, 20)),) * 2)
    if kind == "small":
        picture = picture.resize((round(picture_size * 0.6),) * 2)
    data = encode(picture, int(rng.integers(88, 96)))
    return data[: len(data) * 2 // 5] if kind == "truncated" else data


@dataclass(frozen=True, kw_only=True)
class WebRow:
    """A row of the metadata before it has a URL."""

    kind: str
    name: str  # of the picture file
    spec: SceneSpec
    side: int
    scores: Scores

    @property
    def caption(self) -> str:
        """The scene's caption; only two words for a row with a poor caption."""
        return self.spec.caption.noun + " photo" if self.kind == "caption_words" else self.spec.caption.text

    def url(self, port: int) -> str:
        """The picture's URL. Nothing listens on port 1, so that a connection there is refused."""
        return f"http://{HOST}:{1 if self.kind == 'refused' else port}/pictures/{self.name}.jpg"


def draw_rows(settings: MicroworldConfig, seed: int) -> list[WebRow]:
    """Draw all rows, each with a scene of its own, also the duplicates, which later get another row's picture."""
    rng = np.random.default_rng([seed, 1])
    kinds = draw_kinds(settings, rng)
    shares = SceneShares(captions=CaptionShares(web_like=settings.web_like_captions))
    specs = draw_specs("adapter", len(kinds), seed, shares=shares)
    return [
        WebRow(
            kind=kind,
            name=content_id("microworld", str(seed), str(number))[:16],
            spec=spec,
            side=frame_side(kind, settings.picture_size, rng),
            scores=draw_scores(kind, rng),
        )
        for number, (kind, spec) in enumerate(zip(kinds, specs, strict=True))
    ]


def render(rows: Sequence[WebRow]) -> Iterator[tuple[WebRow, Image.Image]]:
    """Render the scenes of the rows that need one, in batches of equal size."""
    wanted = sorted((row for row in rows if row.kind not in _NOT_RENDERED), key=lambda row: row.side)
    for side in sorted({row.side for row in wanted}):
        same = [row for row in wanted if row.side == side]
        for start in range(0, len(same), _PICTURES_AT_ONCE):
            chunk = same[start : start + _PICTURES_AT_ONCE]
            scenes = render_scenes([row.spec for row in chunk], side)
            for row, pixels in zip(chunk, scenes.image, strict=True):
                yield row, Image.fromarray(pixels)


def write_web(output: Path, settings: MicroworldConfig, seed: int, report: Reporter) -> Counter[str]:
    """Write `output/web/pictures/*.jpg` and `output/metadata/`; returns the number of rows of each kind."""
    pictures = output / "web" / "pictures"
    pictures.mkdir(parents=True)
    rows = draw_rows(settings, seed)
    rng = np.random.default_rng([seed, 2])
    for done, (row, picture) in enumerate(render(rows)):
        (pictures / f"{row.name}.jpg").write_bytes(finish(row.kind, picture, settings.picture_size, rng))
        if done % _PICTURES_AT_ONCE == 0:
            report.progress(done, len(rows), "rendering the pictures of the web")
    table = _metadata_table(rows, pictures, settings.port, rng)
    (output / "metadata").mkdir()
    pq.write_table(table, output / "metadata" / "part-00000.parquet")
    return Counter(row.kind for row in rows)


def _metadata_table(rows: Sequence[WebRow], pictures: Path, port: int, rng: np.random.Generator) -> pa.Table:
    """The metadata of all rows; writes the files that are not rendered."""
    table = [_metadata(row, row, port) for row in rows]
    good = [row for row in rows if row.kind == "good"]
    for number, row in enumerate(rows):
        if row.kind in GROUPS["duplicate"]:
            original = good[int(rng.integers(len(good)))]
            table[number] = _duplicate(row, original, pictures, port)
        elif row.kind in ("not_a_picture", "empty"):
            text = "<html><body>Moved.</body></html>\n" if row.kind == "not_a_picture" else ""
            (pictures / f"{row.name}.jpg").write_text(text)
    return pa.Table.from_pylist(table, schema=METADATA)


def _duplicate(row: WebRow, original: WebRow, pictures: Path, port: int) -> dict[str, object]:
    """The metadata row of a duplicate of `original`; writes its file if it has one of its own."""
    if row.kind == "same_row":
        return _metadata(original, original, port)
    data = (pictures / f"{original.name}.jpg").read_bytes()
    if row.kind == "near_copy":  # like a re-upload: another size and compression
        with Image.open(io.BytesIO(data)) as picture:
            side = round(picture.width * 1.125)
            data = encode(picture.resize((side, side), Image.Resampling.BICUBIC), quality=75)
    (pictures / f"{row.name}.jpg").write_bytes(data)
    return _metadata(row, original, port)


def _metadata(row: WebRow, content: WebRow, port: int) -> dict[str, object]:
    """The URL of `row` with the caption, size and scores of `content`, the row whose picture it shows."""
    return {
        "URL": row.url(port),
        "TEXT": content.caption,
        "WIDTH": content.side,
        "HEIGHT": content.side,
        "similarity": content.scores.similarity,
        "punsafe": content.scores.unsafe,
        "pwatermark": content.scores.watermark,
        "AESTHETIC_SCORE": content.scores.aesthetic,
    }
