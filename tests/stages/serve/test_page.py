"""The page, driven in headless Chromium by its own controls."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from PIL import Image
from playwright.sync_api import Browser
from starlette.responses import JSONResponse

from model.painting.painter import RequestPainter
from stages.serve.config import ServeConfig
from stages.serve.painting import Event, Fields, PaintingFailedError, Preview
from stages.serve.web.application import make_application
from tests.support.browser import OpenPage, chromium, names_of_controls
from tests.support.local_painters import NAME, SIDE, LocalPainters, listening, noise_picture, tiny_painter
from tests.support.tiny_models import write_sd

pytestmark = pytest.mark.slow

SENTENCE = "a cat in a hat"
KEY = "sk-right"
CONCEPT = {"id": f"{NAME}:my-dog", "object": "model", "created": 0, "owned_by": "realword", "concept": True}
Open = Callable[..., OpenPage]


class HeldPainters(LocalPainters):
    """Note what is asked for. Stop after the first preview until `go_on`; with `fails`, painting fails then."""

    def __init__(self, model: RequestPainter) -> None:
        super().__init__(model)
        self.go_on = threading.Event()
        self.closed = threading.Event()
        self.fails = False
        self.asked: list[Fields] = []

    async def paint(self, fields: Fields) -> AsyncGenerator[Event, None]:
        self.asked.append(fields)
        events = super().paint(fields)
        try:
            async for event in events:
                yield event
                while isinstance(event, Preview) and not self.go_on.is_set():
                    await asyncio.sleep(0.01)
                if isinstance(event, Preview) and self.fails:
                    raise PaintingFailedError("secret")
        finally:
            await events.aclose()
            self.closed.set()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RequestPainter:
    return tiny_painter(write_sd(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(browser: Browser, application: FastAPI) -> Iterator[str]:
    with listening(application) as address:
        yield address


@pytest.fixture
def held(browser: Browser, model: RequestPainter) -> Iterator[tuple[HeldPainters, str]]:
    painters = HeldPainters(model)
    with listening(make_application(painters, NAME, NAME, ServeConfig(max_steps=50))) as address:
        yield painters, address
        painters.go_on.set()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page; at the end nothing has been wrong in it."""
    opened: list[OpenPage] = []

    def open_page(address: str = address, **options: Any) -> OpenPage:
        page = OpenPage(browser, address, **options)
        opened.append(page)
        page.write(SENTENCE)
        return page

    yield open_page
    problems = [page.problems for page in opened]
    for page in opened:
        page.tab.close()
    assert problems == [[] for _ in opened]


def subjects_of(painters: HeldPainters) -> list[tuple[str, bytes]]:
    """Words and pictures of the last request."""
    return [(subject["word"], subject["picture"]) for subject in painters.asked[-1]["subjects"]]


def with_cat(page: OpenPage) -> OpenPage:
    page.add(noise_picture())
    page.button("cat").click()
    return page


def test_a_picture_appears_with_its_mask(open_page: Open, held: tuple[HeldPainters, str]) -> None:
    painters, address = held
    page = with_cat(open_page(address))
    page.button("Paint").click()
    image, mask = (page.figure().get_by_role("img").nth(number) for number in range(2))
    image.wait_for()
    mask.wait_for()
    assert image.get_attribute("alt") == f"Preview: {SENTENCE}"
    assert page.figure().get_by_role("progressbar").get_attribute("value") == "1"
    painters.go_on.set()
    page.wait_for_status("Painted in")
    assert image.get_attribute("alt") == f"Painted: {SENTENCE}"
    assert image.evaluate("image => image.naturalWidth") == SIDE
    assert mask.evaluate("mask => getComputedStyle(mask).maskImage").startswith('url("blob:')
    page.tab.get_by_label("Show the mask").uncheck()
    assert mask.is_hidden()
    assert page.tab.locator("#model").inner_text() == NAME


def test_pictures_take_the_words_that_are_clicked(open_page: Open, held: tuple[HeldPainters, str]) -> None:
    painters, address = held
    painters.go_on.set()
    page = open_page(address)
    page.add(noise_picture(1), noise_picture(2))
    page.button("cat").click()
    assert page.button("Picture 1: cat").get_attribute("aria-pressed") == "false"
    page.button("hat").click()  # of the next picture, which is selected by itself
    assert page.button("Picture 2: hat").is_visible()
    assert page.tab.locator("#words [data-subject]").all_inner_texts() == ["cat\n1", "hat\n2"]
    page.paint()
    assert subjects_of(painters) == [("cat", noise_picture(1)), ("hat", noise_picture(2))]
    page.button("cat, picture 1").click()  # it goes to the selected picture
    assert page.button("Picture 1: click its word").is_visible()
    page.button("Remove picture 1").click()
    page.write("a dog in a cat")
    assert page.button("Picture 1: cat").is_visible()
    page.write("a dog")
    assert page.button("Picture 1: click its word").is_visible()
    page.write("a Cat")
    assert page.button("Picture 1: cat").is_visible()


def test_pictures_are_dropped_and_pasted(open_page: Open) -> None:
    page = open_page()
    for number, way in enumerate(("drop", "paste"), 1):
        page.tab.evaluate(
            """([way, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "cat.png", { type: "image/png" }));
                data.items.add(new File(["text"], `${way}.txt`, { type: "text/plain" }));
                const [Kind, field] = way === "drop" ? [DragEvent, "dataTransfer"] : [ClipboardEvent, "clipboardData"];
                document.body.dispatchEvent(new Kind(way, { [field]: data, bubbles: true, cancelable: true }));
            }""",
            [way, list(noise_picture())],
        )
        page.wait_for_status(f"{way}.txt is not a picture")
        assert page.tab.locator("#pictures li").count() == number


def test_text_only_is_painted_beside_it_with_the_same_seed(open_page: Open) -> None:
    page = with_cat(open_page())
    page.tab.get_by_label("Compare with text only").check()
    page.tab.get_by_label("Seed", exact=True).fill("7")
    page.paint()
    captions = page.tab.locator("figcaption").all_inner_texts()
    assert captions == ["With your picture, seed 7", "Text only, seed 7"]
    with_picture, text_only = page.download(0), page.download(1)
    page.button("Remove picture 1").click()
    page.paint()
    assert page.tab.locator("article").first.locator("figcaption").all_inner_texts() == ["Text only, seed 7"]
    assert page.download() == text_only != with_picture


def test_a_seed_that_is_held_gives_the_same_picture(open_page: Open) -> None:
    page = with_cat(open_page())
    page.paint()
    first, seed = page.download(), page.tab.get_by_label("Seed", exact=True).input_value()
    page.tab.get_by_label("Hold the seed").check()
    page.paint()
    assert page.tab.get_by_label("Seed", exact=True).input_value() == seed
    assert page.download() == first
    page.tab.get_by_label("Hold the seed").uncheck()
    page.paint()
    assert page.tab.get_by_label("Seed", exact=True).input_value() != seed
    assert page.download() != first


def test_a_result_is_the_next_subject(open_page: Open, held: tuple[HeldPainters, str]) -> None:
    painters, address = held
    painters.go_on.set()
    page = with_cat(open_page(address))
    page.paint()
    result = page.download()
    page.button("Use as next subject").click()
    assert page.button("Picture 1: not used").is_visible()
    assert page.button("Picture 2: cat").is_visible()
    assert page.tab.get_by_label("Sentence", exact=True).evaluate("field => field === document.activeElement")
    page.paint()
    assert subjects_of(painters) == [("cat", result)]
    assert page.tab.locator("article").count() == 2


def test_cancelling_stops_the_request(open_page: Open, held: tuple[HeldPainters, str]) -> None:
    painters, address = held
    page = with_cat(open_page(address))
    page.button("Paint").click()
    page.figure().get_by_role("img").first.wait_for()
    page.button("Cancel").click()
    page.wait_for_status("Cancelled.")
    assert painters.closed.wait(5)
    assert page.tab.locator("figure").count() == 0
    painters.go_on.set()
    page.paint()


def test_errors_are_shown_in_words(open_page: Open, held: tuple[HeldPainters, str]) -> None:
    painters, address = held
    page = with_cat(open_page(address))
    page.tab.get_by_label("Steps").fill("51")
    page.button("Paint").click()
    page.wait_for_status("The field 'steps' must be at most 50.")
    page.tab.get_by_label("Steps").fill("")
    painters.fails = True
    painters.go_on.set()
    page.button("Paint").click()
    page.wait_for_status("Painting failed; the server's log says why.")  # in a stream that has begun
    page.tab.context.set_offline(True)
    page.button("Paint").click()
    page.wait_for_status("The server cannot be reached.")
    assert page.tab.locator("figure").count() == 0
    assert [problem.split("(")[0] for problem in page.problems] == [
        "Failed to load resource: the server responded with a status of 400 ",
        "Failed to load resource: net::ERR_INTERNET_DISCONNECTED",
    ]
    page.problems.clear()


def test_what_is_missing_is_said_without_a_request(open_page: Open) -> None:
    page = open_page()
    asked: list[str] = []
    page.tab.on("request", lambda request: asked.append(request.method))
    seed, steps = page.tab.get_by_label("Seed", exact=True), page.tab.get_by_label("Steps")
    wrong: list[tuple[Callable[[], None], Callable[[], None], str]] = [
        (lambda: page.write(" "), lambda: page.write(SENTENCE), "Write a sentence first."),
        (lambda: seed.fill("-1"), lambda: seed.fill(""), "Value must be greater than or equal to 0"),
        (lambda: steps.fill("2.5"), lambda: steps.fill(""), "Please enter a valid value"),
        (lambda: page.add(noise_picture()), lambda: None, "Click the word that your picture stands for"),
    ]
    for enter, correct, message in wrong:
        enter()
        page.button("Paint").click()
        page.wait_for_status(message)
        correct()
    assert "POST" not in asked


def test_a_key_is_asked_for_and_kept_in_the_tab(open_page: Open, browser: Browser, model: RequestPainter) -> None:
    application = make_application(LocalPainters(model), NAME, NAME, ServeConfig())

    @application.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Any:
        if request.url.path.startswith("/v1") and request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "This server needs an API key."}}, 401)
        return await call_next(request)

    with listening(application) as address:
        page = open_page(address)
        page.wait_for_status("This server needs an API key.")
        page.problems.clear()  # the console names the status 401
        page.tab.get_by_label("API key of this server").fill(KEY)
        page.button("Use the key").click()
        assert page.tab.get_by_label("API key of this server").is_hidden()
        with_cat(page).paint()
        page.tab.reload()
        page.paint()
        assert page.tab.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_concepts_are_there_if_the_server_has_some(open_page: Open) -> None:
    page = open_page()
    assert page.tab.get_by_label("Learned concept").is_hidden()
    page.tab.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": [CONCEPT]}))
    page.tab.route("**/v1/images/generations", lambda route: route.abort())
    page.tab.reload()
    page.tab.get_by_label("Learned concept").select_option(str(CONCEPT["id"]))
    page.tab.get_by_label("Lambda").press("ArrowRight")
    with page.tab.expect_request("**/v1/images/generations") as request:
        page.button("Paint").click()
    asked = json.loads(str(request.value.post_data))
    assert (asked["model"], asked["dci_lambda"]) == (CONCEPT["id"], 0.1)
    page.wait_for_status("The server cannot be reached.")
    page.problems.clear()  # of the request that was not sent


def test_the_keyboard_is_enough(open_page: Open, tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(noise_picture())
    page = open_page()
    with page.tab.expect_file_chooser() as chooser:
        tab_to(page, "Add pictures")
        page.tab.keyboard.press("Enter")
    chooser.value.set_files(picture)
    page.tab.locator("#pictures li").wait_for()
    tab_to(page, "cat")
    page.tab.keyboard.press("Space")
    assert page.button("Picture 1: cat").is_visible()
    tab_to(page, "Paint")
    page.tab.keyboard.press("Enter")
    page.wait_for_status("Painted in")
    tab_to(page, "Use as next subject")
    page.tab.keyboard.press("Enter")
    page.tab.keyboard.type(" ")
    page.tab.keyboard.press("Enter")  # in the sentence
    page.tab.locator("article").nth(1).wait_for()
    page.wait_for_status("Painted in")
    tab_to(page, "Remove picture 2")
    page.tab.keyboard.press("Enter")
    assert focus(page)[0] == "Picture 1: click its word"


def tab_to(page: OpenPage, name: str) -> None:
    """Press Tab until a control has the focus; the focus is visible on the way."""
    for _ in range(60):
        page.tab.keyboard.press("Tab")
        focused, is_visible = focus(page)
        assert is_visible or focused == ""  # of the browser's own bar
        if focused == name:
            return
    raise AssertionError(f"{name} cannot be reached")


def focus(page: OpenPage) -> list[Any]:
    """The name of what has the focus, and whether that can be seen."""
    return page.tab.evaluate(
        """() => {
            const control = document.activeElement, label = control.closest("label");
            if (control === document.body) return ["", false];
            const seen = (part) => part && getComputedStyle(part).outlineStyle !== "none";
            const text = control.ariaLabel ?? label?.querySelector("span")?.innerText ?? control.innerText;
            return [text.trim(), Boolean(seen(control) || seen(label))];
        }"""
    )


def test_every_control_has_a_name(open_page: Open) -> None:
    page = with_cat(open_page())
    page.tab.get_by_label("Compare with text only").check()
    page.paint()
    page.tab.evaluate("for (const part of document.querySelectorAll('[hidden]')) part.hidden = false")
    named = names_of_controls(page.tab)
    assert len(named) > 25
    assert [role for role, name in named if not name.strip()] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_in_both_colour_schemes(open_page: Open, scheme: str) -> None:
    page = with_cat(open_page(viewport={"width": 375, "height": 667}, color_scheme=scheme, has_touch=True))
    page.tab.get_by_label("Compare with text only").check()
    page.button("Paint").tap()
    page.figure(1).get_by_role("link", name="Download").wait_for()
    page.write(f"{SENTENCE} {'x' * 80}")
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 375
    shot = Image.open(io.BytesIO(page.tab.screenshot())).convert("L").resize((1, 1))
    assert (shot.tobytes()[0] < 128) == (scheme == "dark")


def test_words_of_the_sentence_and_phrases(open_page: Open) -> None:
    page = open_page()
    page.add(noise_picture())
    page.write("a red T-shirt, and a cat's hat; a Red shirt 雪")
    steps = [
        ("red", "red"),
        ("T", "red T"),
        ("shirt", "red T-shirt"),
        ("red", "T-shirt"),
        ("cat's", "cat's"),
        ("hat", "cat's hat"),
        ("cat's", "hat"),
        ("hat", ""),
        ("雪", "雪"),
    ]
    for word, phrase in steps:
        page.tab.locator("#words button", has_text=word).first.click()
        assert page.tab.locator(".picture .word").inner_text() == (phrase or "click its word")


def test_a_large_photo_is_sent_smaller(open_page: Open, held: tuple[HeldPainters, str]) -> None:
    painters, address = held
    painters.go_on.set()
    page, photo = open_page(address), io.BytesIO()
    Image.effect_noise((2000, 1600), 90).save(photo, "JPEG", quality=98)
    page.add(photo.getvalue())
    page.button("cat").click()
    page.paint()
    ((_, sent),) = subjects_of(painters)
    assert Image.open(io.BytesIO(sent)).size == (1536, 1229)
