"""The picture of the server's page in `docs/serving.md`.

    python -m tests.benchmarks.serving_page docs/serving_page.png

Hardware and time: one core and Chromium; less than a minute.

The shipped model paints on the page that a headless Chromium shows: the example's picture and the text alone.
The seed was chosen from the first 16 for a clear picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from fastapi import FastAPI
from PIL import Image

from model.micro_sd.shipped_adapter import find_shipped_model
from model.painting.painter import RequestPainter
from pipelines.config.loading import load_config
from stages.serve.config import ServeConfig
from stages.serve.web.application import make_application
from tests.benchmarks.support.command_line import benchmark_parser
from tests.support.browser import OpenPage, chromium
from tests.support.local_painters import LocalPainters, listening

_SEED = "6"


def shipped_application() -> FastAPI:
    """The server with the model that ships, and the default profile's settings."""
    config, shipped = load_config("micro"), find_shipped_model()
    painter = RequestPainter(
        pipeline=shipped.load(torch.float32, "cpu"),
        settings=config.inference,
        title=shipped.title,
        adapter=shipped.fingerprint,
    )
    return make_application(LocalPainters(painter), config.register.model_name, ServeConfig())


def picture_of_the_page(address: str) -> Image.Image:
    """The page after a round."""
    with chromium() as browser:
        page = OpenPage(browser, address, viewport={"width": 880, "height": 760})
        page.button("Try it with a picture of a mug").click()
        page.write("a photo of a mug in the snow")
        page.button("mug").click()
        page.tab.get_by_label("Seed", exact=True).fill(_SEED)
        page.tab.get_by_label("Compare with text only").check()
        page.paint()
        return Image.open(io.BytesIO(page.tab.screenshot()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    with listening(shipped_application()) as address:
        picture_of_the_page(address).convert("RGB").save(options.file, optimize=True)


if __name__ == "__main__":
    main()
