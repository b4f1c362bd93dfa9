"""Headless Chromium, and the server's page in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from tests.support.local_painters import noise_picture

SENTENCE = "a cat in a hat"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The installed Chromium with a new profile. Without one, the test is skipped."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path  # of `playwright install chromium`
        found = [path for name in _NAMES if (path := shutil.which(name))] or [own]
        if not Path(found[0]).exists():
            pytest.skip("there is no Chromium: apt-get install chromium, or python -m playwright install chromium")
        browser = playwright.chromium.launch(executable_path=found[0], args=list(_OPTIONS))
        yield browser
        browser.close()


class OpenPage:
    """The page in a context of its own, with a sentence.

    Attributes:
        tab: As Playwright drives it.
        problems: What the browser's console says, and addresses elsewhere that the page has asked for.
    """

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.tab = browser.new_page(**{"viewport": {"width": 1100, "height": 800}, **options})
        self.tab.set_default_timeout(30_000)  # a busy machine
        self.problems: list[str] = []
        self.tab.on("console", lambda message: self.problems.append(message.text))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("request", lambda request: self._check_address(request.url, address))
        self.tab.goto(f"{address}/")
        self.write(SENTENCE)

    def _check_address(self, asked: str, address: str) -> None:
        if not asked.startswith((address, f"blob:{address}")):
            self.problems.append(asked)

    def button(self, name: str) -> Locator:
        return self.tab.get_by_role("button", name=name, exact=True)

    def add(self, *pictures: bytes) -> None:
        before = self.tab.locator("#pictures li").count()
        files: list[Any] = [
            {"name": f"{number}.png", "mimeType": "image/png", "buffer": picture}
            for number, picture in enumerate(pictures)
        ]
        self.tab.get_by_label("Add pictures").set_input_files(files)
        self.tab.locator("#pictures li").nth(before + len(pictures) - 1).wait_for()

    def add_cat(self) -> None:
        """Add a picture, and click the word that it stands for."""
        self.add(noise_picture())
        self.button("cat").click()

    def write(self, sentence: str) -> None:
        self.tab.get_by_label("Sentence", exact=True).fill(sentence)

    def paint(self) -> None:
        """Paint, and wait until it is finished."""
        self.button("Paint").click()
        self.wait_for_status("Painted in")

    def wait_for_status(self, text: str) -> None:
        self.tab.get_by_role("status").filter(has_text=text).wait_for()

    def figure(self, number: int = 0) -> Locator:
        """Of the newest round."""
        return self.tab.locator("article").first.locator("figure").nth(number)

    def download(self, number: int = 0) -> bytes:
        with self.tab.expect_download() as download:
            self.figure(number).get_by_role("link", name="Download").click()
        return Path(download.value.path()).read_bytes()


Open = Callable[..., OpenPage]  # the fixture `open_page`


def names_of_controls(page: Page) -> list[tuple[str, str]]:
    """Role and accessible name of everything that can be used or seen, as assistive technology gets them."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "textbox", "checkbox", "spinbutton", "slider", "combobox", "progressbar", "image"}
    return [
        (role, node["name"]["value"])
        for node in tree
        if not node["ignored"] and (role := node["role"]["value"]) in roles
    ]
