"""The page's controls: pictures, words, keyboard, assistive technology, phones."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.browser import SENTENCE, Open, OpenPage, names_of_controls
from tests.support.held_painters import HeldPainters
from tests.support.local_painters import noise_picture

pytestmark = pytest.mark.slow


def test_pictures_take_the_words_that_are_clicked(open_page: Open, held: HeldPainters) -> None:
    held.go_on.set()
    page = open_page(held.address)
    page.add(noise_picture(1), noise_picture(2))
    page.button("cat").click()
    assert page.button("Picture 1: cat").get_attribute("aria-pressed") == "false"
    page.button("hat").click()  # of the next picture, which is selected by itself
    assert page.button("Picture 2: hat").is_visible()
    assert page.tab.locator("#words [data-subject]").all_inner_texts() == ["cat\n1", "hat\n2"]
    page.paint()
    assert held.subjects() == [("cat", noise_picture(1)), ("hat", noise_picture(2))]
    page.button("cat, picture 1").click()  # it goes to the selected picture
    assert page.button("Picture 1: click its word").is_visible()
    page.button("Remove picture 1").click()
    page.write("a dog in a cat")
    assert page.button("Picture 1: cat").is_visible()
    page.write("a dog")
    assert page.button("Picture 1: click its word").is_visible()
    page.write("a Cat")
    assert page.button("Picture 1: cat").is_visible()


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
        ("shirt", "shirt"),
        ("and", "and"),  # after a comma
        ("雪", "雪"),
    ]
    for word, phrase in steps:
        page.tab.locator("#words button", has_text=word).first.click()
        assert page.tab.locator(".picture .word").inner_text() == (phrase or "click its word")


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


def test_a_large_photo_is_sent_smaller(open_page: Open, held: HeldPainters) -> None:
    held.go_on.set()
    page, photo = open_page(held.address), io.BytesIO()
    Image.frombytes("RGB", (1600, 500), os.urandom(3 * 1600 * 500)).save(photo, "PNG")  # noise does not shrink
    page.add(photo.getvalue())
    page.button("cat").click()
    page.paint()
    ((_, sent),) = held.subjects()
    assert Image.open(io.BytesIO(sent)).size == (1536, 480)


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
    page = open_page()
    page.add_cat()
    page.tab.get_by_label("Compare with text only").check()
    page.paint()
    page.tab.evaluate("for (const part of document.querySelectorAll('[hidden]')) part.hidden = false")
    named = names_of_controls(page.tab)
    assert len(named) > 25
    assert [role for role, name in named if not name.strip()] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_in_both_colour_schemes(open_page: Open, scheme: str) -> None:
    page = open_page(viewport={"width": 375, "height": 667}, color_scheme=scheme, has_touch=True)
    page.add_cat()
    page.tab.get_by_label("Compare with text only").check()
    page.button("Paint").tap()
    page.figure(1).get_by_role("link", name="Download").wait_for()
    page.write(f"{SENTENCE} {'x' * 80}")
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 375
    shot = Image.open(io.BytesIO(page.tab.screenshot())).convert("L").resize((1, 1))
    assert (shot.tobytes()[0] < 128) == (scheme == "dark")
