"""The page paints: driven in headless Chromium by its own clicks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from starlette.responses import JSONResponse

from tests.support.browser import SENTENCE, Open
from tests.support.held_painters import HeldPainters
from tests.support.local_painters import NAME, SIDE, TITLE, listening, tiny_application

pytestmark = pytest.mark.slow

KEY = "sk-right"


def test_a_picture_appears_with_its_mask(open_page: Open, held: HeldPainters) -> None:
    page = open_page(held.address)
    page.add_cat()
    page.button("Paint").click()
    image, mask = (page.figure().get_by_role("img").nth(number) for number in range(2))
    image.wait_for()
    mask.wait_for()
    assert image.get_attribute("alt") == f"Preview: {SENTENCE}"
    assert page.figure().get_by_role("progressbar").get_attribute("value") == "1"
    held.go_on.set()
    page.wait_for_status("Painted in")
    assert image.get_attribute("alt") == f"Painted: {SENTENCE}"
    assert image.evaluate("image => image.naturalWidth") == SIDE
    assert mask.evaluate("mask => getComputedStyle(mask).maskImage").startswith('url("blob:')
    page.tab.get_by_label("Show the mask").uncheck()
    assert mask.is_hidden()
    assert page.tab.locator("#model").inner_text() == TITLE


def test_text_only_is_painted_beside_it_with_the_same_seed(open_page: Open) -> None:
    page = open_page()
    page.add_cat()
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
    page = open_page()
    page.add_cat()
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


def test_a_result_is_the_next_subject(open_page: Open, held: HeldPainters) -> None:
    held.go_on.set()
    page = open_page(held.address)
    page.add_cat()
    page.paint()
    result = page.download()
    page.button("Use as next subject").click()
    assert page.button("Picture 1: not used").is_visible()
    assert page.button("Picture 2: cat").is_visible()
    assert page.tab.get_by_label("Sentence", exact=True).evaluate("field => field === document.activeElement")
    page.paint()
    assert held.subjects() == [("cat", result)]
    assert page.tab.locator("article").count() == 2


def test_cancelling_stops_the_request(open_page: Open, held: HeldPainters) -> None:
    page = open_page(held.address)
    page.add_cat()
    page.button("Paint").click()
    page.figure().get_by_role("img").first.wait_for()
    page.button("Cancel").click()
    page.wait_for_status("Cancelled.")
    assert held.closed.wait(5)
    assert page.tab.locator("figure").count() == 0
    held.go_on.set()
    page.paint()


def test_errors_are_shown_in_words(open_page: Open, held: HeldPainters) -> None:
    page = open_page(held.address)
    page.add_cat()
    page.tab.get_by_label("Steps").fill("51")
    page.button("Paint").click()
    page.wait_for_status("The field 'steps' must be at most 50.")
    page.tab.get_by_label("Steps").fill("")
    held.fails = True
    held.go_on.set()
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


def test_a_key_is_asked_for_and_kept_in_the_tab(open_page: Open, sd_folder: Path) -> None:
    application = tiny_application(sd_folder)

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
        page.add_cat()
        page.paint()
        page.tab.reload()
        page.paint()
        assert page.tab.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_concepts_are_there_if_the_server_has_some(open_page: Open, held: HeldPainters) -> None:
    assert open_page(held.address).tab.get_by_label("Learned concept").is_hidden()
    page = open_page()
    page.write("a cat in a hat")
    page.tab.get_by_label("Steps", exact=True).fill("8")
    page.tab.get_by_label("Learned concept").select_option(f"{NAME}:tom")
    assert page.tab.get_by_label("Sentence", exact=True).input_value() == "a [v] cat in a hat"
    assert page.tab.get_by_label("Lambda").is_disabled()
    page.tab.get_by_label("Generate its context apart").check()
    page.tab.get_by_label("Lambda").press("ArrowRight")
    with page.tab.expect_request("**/v1/images/generations") as request:
        page.paint()
    asked = json.loads(str(request.value.post_data))
    assert (asked["model"], asked["dci_lambda"]) == (f"{NAME}:tom", 0.1)
