"""Languages, themes, phones, keys, accessibility."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.page.browser import LONG, PAGE, Open, axe, draw, drop, picture, result


def test_german(open_page: Open) -> None:
    page = open_page(locale="de-DE")
    assert page.get_attribute("html", "lang") == "de"
    expect(page.locator("#generate")).to_contain_text("Generieren")
    draw(page, "fox")
    result(page, "fox")
    expect(page.locator("[data-fact=steps]")).to_contain_text("Schritte")
    page.click("#preferences")
    page.select_option("#p-language", "en")
    page.wait_for_selector("html[data-ready][lang=en]")
    expect(page.locator("#generate")).to_contain_text("Generate")
    assert page.input_value("#prompt") == "fox"


def test_dark_follows_the_system_and_the_preference(open_page: Open) -> None:
    def brightness(page: Page) -> float:
        return page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 3"
        )

    page = open_page(color_scheme="dark")
    assert brightness(page) < 60
    page.click("#preferences")
    page.select_option("#p-theme", "light")
    assert brightness(page) > 200


def test_on_a_phone_the_result_stands_above_the_settings(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.fill("#prompt", "fox")
    page.tap("#generate")
    image = result(page, "fox").bounding_box()
    prompt = page.locator("#prompt").bounding_box()
    assert image
    assert prompt
    assert image["y"] + image["height"] < prompt["y"]
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out
    assert page.locator("#compose input[type=range]:visible").count() == 0
    page.tap("#generate-menu")
    menu = page.locator(".generate-pair .popover").bounding_box()
    assert menu
    assert menu["x"] >= 0
    assert menu["x"] + menu["width"] <= 390
    page.keyboard.press("Escape")
    draw(page, "fox", {"#f-guidance": "500"})
    said = page.locator("[data-field=guidance] .field-error")
    expect(said).to_be_visible()
    error, foot = said.bounding_box(), page.locator("#compose-foot").bounding_box()
    assert error
    assert foot
    assert error["y"] + error["height"] <= foot["y"]  # nothing covers it
    page.fill("#f-guidance", "")
    page.tap("#act-inpaint")
    canvas = page.locator("#mask-canvas").bounding_box()
    assert canvas
    assert canvas["x"] >= 0
    assert canvas["x"] + canvas["width"] <= 390
    page.touchscreen.tap(canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2)
    page.tap("#mask-done")
    expect(page.locator(".mask-over")).to_be_attached()


def test_keys_alone_are_enough(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("owl")
    page.keyboard.press("Control+Enter")
    result(page, "owl")
    reached: set[str] = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(str(page.evaluate("document.activeElement.id || document.activeElement.className")))
    assert {
        "negative",
        "f-width",
        "f-height",
        "f-seed",
        "f-steps",
        "generate",
        "f-live",
        "grid-open",
        "gallery-search",
        "tile",
        "model",
    } <= reached
    page.locator(".tile").first.focus()
    page.keyboard.press("s")
    expect(page.locator("#seed-lock")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    expect(page.locator(".tile").first).to_be_focused()  # where it was


def _finished(page: Page) -> None:
    draw(page, "fox")
    result(page, "fox")


def _sections(page: Page) -> None:
    for summary in page.locator(".section summary").all():
        summary.click()


def _compare(page: Page) -> None:
    page.click("#act-compare")
    expect(page.locator("#compare-table tbody tr")).not_to_have_count(0)


def _mask(page: Page) -> None:
    drop(page, picture("teal"), "#drop-source")
    page.click("#draw-mask")
    expect(page.locator("#mask-canvas")).to_be_visible()


def _running(page: Page) -> None:
    draw(page, "fox", {**LONG, "#f-guidance": "4"})
    page.click("#generate")
    expect(page.locator("#progress")).to_contain_text("Step")


def _clicked(selector: str) -> Callable[[Page], None]:
    return lambda page: page.click(selector)


STATES: dict[str, Callable[[Page], None]] = {
    "start": lambda page: expect(page.locator("#generate")).to_be_visible(),
    "finished": _finished,
    "sections": _sections,
    "details": _clicked("#act-details"),
    "keys": _clicked("#keys-help"),
    "preferences": _clicked("#preferences"),
    "presets": _clicked("#presets"),
    "grid": _clicked("#grid-open"),
    "menu": _clicked("#generate-menu"),
    "gallery": _clicked("#gallery-wide"),
    "compare": _compare,
    "mask": _mask,
    "field error": lambda page: draw(page, "fox", {"#f-guidance": "500"}),
    "running": _running,
}
"""One after the other on one page; Escape ends each."""


PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.mark.parametrize(
    ("look", "names"),
    [
        ({}, list(STATES)),
        ({"color_scheme": "dark"}, list(STATES)),
        ({**PHONE, "locale": "de-DE"}, ["finished", "sections", "menu", "mask"]),
    ],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_nothing(open_page: Open, look: dict[str, Any], names: list[str]) -> None:
    page = open_page(**look, reduced_motion="reduce")
    draw(page, "owl")  # something to compare with
    result(page, "owl")
    found: dict[str, list[str]] = {}
    for name in names:
        STATES[name](page)
        if violations := axe(page):
            found[name] = violations
        page.keyboard.press("Escape")
    assert found == {}


def test_the_browser_is_given_nothing_inline() -> None:
    """What a strict content security policy would refuse anyway, and no address of elsewhere."""
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"""<script(?![^>]*\bsrc=)|\son\w+="|\sstyle="|innerHTML|insertAdjacentHTML|\beval\(|new Function""", text), (
            path.name
        )
        foreign = [url for url in re.findall(r"https?://[\w./-]+", text) if "www.w3.org" not in url]
        assert foreign == [], path.name
