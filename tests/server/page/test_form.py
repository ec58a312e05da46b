"""The form: errors beside fields, weights, tokens, sizes."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.server.page.browser import Open, draw, drop, file_of, picture, result
from tests.support.server_process import Server


def test_an_error_stands_beside_its_field(open_page: Open) -> None:
    page = open_page()
    draw(page, "fox", {"#f-guidance": "500"})
    error = page.locator("[data-field=guidance] .field-error")
    expect(error).to_contain_text("100")
    expect(page.locator("#f-guidance")).to_have_attribute("aria-invalid", "true")
    page.fill("#f-guidance", "5")
    expect(error).to_be_hidden()


def test_an_empty_prompt_asks_for_one(open_page: Open) -> None:
    page = open_page()
    page.click("#generate")
    expect(page.locator("[data-field=prompt] .field-error")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#alert")).not_to_be_empty()


def test_ctrl_and_arrows_weigh_the_word_at_the_cursor(open_page: Open) -> None:
    page = open_page()
    page.fill("#prompt", "a red fox")
    page.keyboard.press("Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Control+ArrowUp")
    assert page.input_value("#prompt") == "a (red:1.1) fox"
    page.keyboard.press("Control+ArrowUp")
    assert page.input_value("#prompt") == "a (red:1.2) fox"
    for _ in range(3):
        page.keyboard.press("Control+ArrowDown")
    assert page.input_value("#prompt") == "a (red:0.9) fox"
    page.keyboard.press("Control+ArrowUp")
    assert page.input_value("#prompt") == "a red fox"
    page.keyboard.press("Control+z")  # the browser's own undo
    assert page.input_value("#prompt") == "a (red:0.9) fox"


WEIGHTS = [  # text, selection, direction, the text after it
    ("fox, red apple", (5, 14), 1, "fox, (red apple:1.1)"),
    ("fox, (red apple:1.1)", (6, 15), -1, "fox, red apple"),
    ("a (b:1.5) c", (3, 3), 1, "a (b:1.6) c"),
    ("((fox:1.2), owl:1.1)", (3, 3), 1, "((fox:1.3), owl:1.1)"),
    ("fox", (3, 3), -1, "(fox:0.9)"),
    ("(fox:0.0)", (2, 2), -1, "(fox:0.0)"),
    ("fox  owl", (4, 4), 1, "fox  owl"),
]


def test_weights_wrap_grow_shrink_and_vanish(open_page: Open) -> None:
    page = open_page()
    script = """async ([text, start, end, direction]) => {
        const { reweigh } = await import("/assets/weights.js");
        const change = reweigh(text, start, end, direction);
        return change ? text.slice(0, change.from) + change.text + text.slice(change.to) : text;
    }"""
    for text, (start, end), direction, expected in WEIGHTS:
        assert page.evaluate(script, [text, start, end, direction]) == expected


def test_the_token_counter_counts(open_page: Open) -> None:
    page = open_page()
    page.fill("#prompt", "fox")
    expect(page.locator("#prompt-tokens")).to_have_text(re.compile(r"^1 / \d+$"))


def test_sizes_swap_and_snap(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="4:3").click()
    width, height = page.input_value("#f-width"), page.input_value("#f-height")
    assert int(width) > int(height)
    page.get_by_label("Swap width and height").click()
    assert (page.input_value("#f-width"), page.input_value("#f-height")) == (height, width)
    page.fill("#f-width", "131")
    page.press("#f-width", "Tab")
    assert page.input_value("#f-width") == "128"


WITHOUT_CONTROL = {
    "refiner_start": "the server opens no refiner",
    "client": "the page's own name",
    "request": "the form itself",
}
ELSEWHERE = {"model": "#model", "live": "#f-live", "front": "#generate-menu", "embeddings": ".words"}


def test_every_field_of_a_request_has_a_control(open_page: Open, server: Server) -> None:
    page = open_page()
    schemas = server.client.get("/api/v1/openapi.json").json()["components"]["schemas"]
    fields = {**schemas["Request"]["properties"], **schemas["JobRequest"]["properties"]}.keys() - WITHOUT_CONTROL.keys()
    lost = [name for name in fields if page.locator(ELSEWHERE.get(name, f"[data-field={name}]")).count() == 0]
    assert lost == []


EXPERT = {
    "#f-guidance_start": "0.1",
    "#f-guidance_end": "0.9",
    "#f-rescale": "0.2",
    "#f-clip_skip": "1",
    "#f-sigmas": "9, 3; 1 0.4",
}


def test_expert_settings_reach_the_request_and_come_back(open_page: Open) -> None:
    page = open_page()
    page.get_by_text("Expert", exact=True).click()
    page.select_option("#f-format", "webp")
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.url.endswith("/jobs")) as sent:
        draw(page, "fox", EXPERT)
    request = sent.value.request.post_data_json
    assert request["format"] == "webp"
    wanted = {"guidance_interval": [0.1, 0.9], "rescale": 0.2, "clip_skip": 1, "sigmas": [9, 3, 1, 0.4]}
    assert {name: request["request"][name] for name in wanted} == wanted
    result(page, "fox")
    assert file_of(page)[8:12] == b"WEBP"
    for field in EXPERT:
        page.fill(field, "")
    page.click("#act-all")
    expect(page.locator("#f-sigmas")).to_have_value("9, 3, 1, 0.4")
    assert [page.input_value(field) for field in EXPERT if field != "#f-sigmas"] == ["0.1", "0.9", "0.2", "1"]


def test_errors_of_expert_settings_stand_beside_them(open_page: Open) -> None:
    page = open_page()
    page.get_by_text("Expert", exact=True).click()
    draw(page, "fox", {"#f-timesteps": "999, then some"})
    expect(page.locator("[data-field=timesteps] .field-error")).to_be_visible()
    page.fill("#f-timesteps", "")
    draw(page, "fox", {"#f-guidance_start": "0.8", "#f-guidance_end": "0.2"})
    expect(page.locator("[data-field=guidance_interval] .field-error")).to_be_visible()
    page.fill("#f-guidance_end", "0.9")
    expect(page.locator("[data-field=guidance_interval] .field-error")).to_be_hidden()


def test_a_size_between_the_possible_ones_says_what_becomes_of_it(open_page: Open) -> None:
    page = open_page()
    page.fill("#f-width", "100")
    page.press("#f-width", "Tab")
    expect(page.locator("#size-hint")).to_have_text("104: widths are multiples of 8.")
    page.fill("#f-width", "128")
    expect(page.locator("#size-hint")).to_be_hidden()


def test_an_error_of_the_width_leaves_the_height_beside_it(open_page: Open) -> None:
    page = open_page()
    draw(page, "fox", {"#f-width": "4096", "#f-height": "8192"})
    expect(page.locator("[data-field=width] .field-error, [data-field=height] .field-error").locator("visible=true")).to_have_count(1)
    boxes = [page.locator(place).bounding_box() for place in ("#f-width", "#f-height", ".size-row > .icon-button")]
    tops = [box["y"] for box in boxes if box]
    assert max(tops) - min(tops) <= 2


@pytest.mark.parametrize("viewport", [(1400, 900), (390, 844)], ids=["desktop", "phone"])
def test_an_error_of_live_stays_in_its_column_and_goes_with_the_prompt(open_page: Open, viewport: tuple[int, int]) -> None:
    page = open_page(viewport=dict(zip(("width", "height"), viewport, strict=True)))
    page.check("#f-live")
    page.fill("#prompt", "fox <lora:ink:0.8>")
    note = page.locator("#live-note")
    expect(note).to_contain_text("ink")
    column = page.locator("#compose").bounding_box()
    box = note.bounding_box()
    button = page.locator("#generate-menu").bounding_box()
    assert column
    assert box
    assert button
    assert column["width"] <= (384 if viewport[0] > 760 else viewport[0])
    for one in (box, button):
        assert one["x"] + one["width"] <= column["x"] + column["width"]
    assert note.evaluate("node => [node.scrollWidth <= node.clientWidth, getComputedStyle(node).whiteSpace]") == [True, "normal"]
    page.fill("#prompt", "fox")
    expect(note).to_be_empty()


CUT = """selector => [...document.querySelectorAll(selector)].filter((select) => {
    const style = getComputedStyle(select);
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = style.font;
    const room = select.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return [...select.options].some((one) => pen.measureText(one.text).width > room);
}).map((select) => [select.id, [...select.options].map((one) => one.text)])"""


@pytest.mark.parametrize("locale", ["en-GB", "de-DE"])
def test_choices_are_shown_whole(open_page: Open, locale: str) -> None:
    page = open_page(viewport={"width": 1400, "height": 900}, locale=locale)
    drop(page, picture("teal"), "#drop-source")
    expect(page.locator("#f-fit")).to_be_visible()
    for summary in page.locator(".section summary").all():
        summary.click()
    assert page.evaluate(CUT, "#compose select") == []
