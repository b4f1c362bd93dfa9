"""The server's application in this process: a tiny real pipeline, painted with in threads instead of by Ray."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.types import ASGIApp

from model.adapters.adapter import VisualAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.concepts.folder import write_concept
from model.guidance.settings import InferenceSettings
from model.painting.painter import RequestPainter
from stages.serve.app import painter_limits
from stages.serve.config import ServeConfig
from stages.serve.painter import ModelPainter
from stages.serve.painting import Refused, Served
from stages.serve.served_model import ServedConcept
from stages.serve.uploaded_concepts import OtherFiles
from stages.serve.version_files import VersionFiles
from stages.serve.web.application import make_application
from tests.support.concepts import METHODS
from tests.support.tiny_pipelines import CROSS, build

NAME = "realword-tiny"
TITLE = f"{NAME} version 1"
SIDE = 32  # of its pictures
SETTINGS = ServeConfig(max_picture_bytes=100_000, max_steps=50, timeout_seconds=60)


class LocalPainters(ModelPainter):
    """One painter."""

    def __init__(
        self,
        model: RequestPainter,
        settings: ServeConfig = SETTINGS,
        concepts: Sequence[ServedConcept] = (),
        uploads: Path | None = None,
    ) -> None:
        super().__init__(model, TITLE, painter_limits(settings), concepts, uploads)
        self.served = Served(title=TITLE)

    @property
    def free(self) -> int:
        """Places in the batch."""
        return self._batch.free

    async def check_ready(self) -> Served:
        """It always is."""
        self.served = await self.ready()
        return self.served


class WithoutUploads:
    """Painters that check no concept."""

    async def check_upload(self, folder: str, name: str, other: OtherFiles | None) -> ServedConcept | Refused:
        raise NotImplementedError


def tiny_painter(folder: Path, method: type[VisualAdapter] = RealCustomPlusAdapter) -> RequestPainter:
    """A painter of three steps, with the backbone of `tests.support.tiny_models.write_sd`."""
    settings = InferenceSettings(steps=3, mask_steps=2, mask_cross_downscales=CROSS["sd"], mask_self_downscales=[])
    return RequestPainter(pipeline=build(folder, method=method), settings=settings, title="tiny", adapter="abc")


def tiny_application(folder: Path) -> FastAPI:
    """An application with two learned concepts."""
    painter, concepts = tiny_painter(folder), []
    for name, method in (("tom", "textual_inversion"), ("tina", "dreambooth")):
        concept = METHODS[method](painter.pipeline)
        write_concept(folder / "concepts" / name, concept)
        painter.concepts.offer(name, folder / "concepts" / name)
        (token,) = concept.tokens
        concepts.append(
            ServedConcept(
                name=name,
                files=VersionFiles(source=str(folder / "concepts" / name)),
                placeholder=token.placeholder,
                word=token.word,
                method=method,
            )
        )
    return make_application(LocalPainters(painter, concepts=concepts), NAME, SETTINGS)


@contextmanager
def listening(application: ASGIApp) -> Iterator[str]:
    """The address at which a thread serves the application, on a free port of the loopback interface."""
    config = uvicorn.Config(application, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def noise_picture(seed: int = 0, side: int = 40) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def half_mask(size: tuple[int, int] = (SIDE, SIDE), alpha: int = 0) -> bytes:
    """A PNG, opaque but for its left half."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, alpha), (0, 0, size[0] // 2, size[1]))
    return encoded(mask)
