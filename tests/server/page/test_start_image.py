"""Images to start from, masks, and settings read from images."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.server.page.browser import Open, draw, drop, file_of, picture, pixels, reload, result


def test_a_dropped_image_is_the_start_of_the_next_one(open_page: Open) -> None:
    page = open_page()
    drop(page, picture("teal"), "#drop-source")
    expect(page.locator(".source-size")).to_have_text("128 × 128")
    draw(page, "red apple", {"#f-strength": "0"})
    result(page, "red apple")
    middle = pixels(page).getpixel((64, 64))
    assert isinstance(middle, tuple)
    assert all(abs(a - b) < 40 for a, b in zip(middle, (0, 128, 128), strict=True))


def test_a_mask_is_painted_undone_redone_and_used(open_page: Open) -> None:
    page = open_page()
    drop(page, picture("white"), "#drop-source")
    page.click("#draw-mask")
    canvas = page.locator("#mask-canvas")
    box = canvas.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for shift in (-60, 60):
        page.mouse.move(x + shift, y)
        page.mouse.down()
        page.mouse.move(x + shift, y + 40, steps=4)
        page.mouse.up()
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    expect(page.locator("#mask-undo")).to_be_disabled()
    page.keyboard.press("Control+Shift+z")
    expect(page.locator("#mask-undo")).to_be_enabled()
    expect(page.locator("#mask-redo")).to_be_enabled()  # the second stroke still waits
    page.keyboard.press("i")  # inverted: everything but the first stroke
    page.keyboard.press("Control+z")
    page.click("#mask-done")
    expect(page.locator("#draw-mask")).to_have_text("Edit the mask")
    draw(page, "red apple", {"#f-strength": "1"})
    result(page, "red apple")
    corner, inside = pixels(page).getpixel((4, 4)), pixels(page).getpixel((52, 68))
    assert min(corner) > 225  # untouched, but for the VAE
    assert min(inside) < 200


def test_a_mask_is_painted_with_keys_alone(open_page: Open) -> None:
    page = open_page()
    drop(page, picture("white"), "#drop-source")
    page.focus("#draw-mask")
    page.keyboard.press("Enter")
    expect(page.locator("#mask-canvas")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#mask-undo")).to_be_enabled()
    page.focus("#mask-done")
    page.keyboard.press("Enter")
    expect(page.locator(".mask-over")).to_be_visible()


def test_a_start_image_and_its_mask_survive_a_reload(open_page: Open) -> None:
    page = open_page()
    drop(page, picture("teal", (64, 96)), "#drop-source")
    page.click("#draw-mask")
    page.focus("#mask-canvas")
    page.keyboard.press("Space")
    page.click("#mask-done")
    expect(page.locator(".mask-over")).to_be_visible()
    reload(page)
    expect(page.locator(".source-size")).to_have_text("64 × 96")
    expect(page.locator(".mask-over")).to_be_visible()


def test_settings_come_back_from_our_png(open_page: Open) -> None:
    page = open_page()
    draw(page, "owl, noto style", {"#f-steps": "6", "#f-guidance": "3.5", "#f-seed": "4242"})
    result(page, "owl, noto style")
    content = file_of(page)
    page.fill("#prompt", "something else")
    page.fill("#f-steps", "3")
    drop(page, content, "#drop-settings")
    page.click("#import-apply")
    values = {field: page.input_value(field) for field in ("#prompt", "#f-steps", "#f-guidance", "#f-seed")}
    assert values == {"#prompt": "owl, noto style", "#f-steps": "6", "#f-guidance": "3.5", "#f-seed": "4242"}
    page.get_by_text("Undo", exact=True).click()
    assert page.input_value("#prompt") == "something else"


def test_settings_that_cannot_be_applied_are_named(open_page: Open) -> None:
    page = open_page()
    settings = "Steps: 12, Sampler: Euler a, CFG scale: 5, Seed: 18446744073709551, Size: 128x128, Tiling: True"
    text = f"fox in snow\nNegative prompt: rain\n{settings}"
    drop(page, picture("gray", text=text), "#drop-settings")
    expect(page.locator("#unapplied")).to_contain_text("Tiling")
    page.click("#import-apply")
    assert page.input_value("#prompt") == "fox in snow"
    assert page.input_value("#negative") == "rain"
    assert page.input_value("#f-seed") == "18446744073709551"  # longer than JavaScript's numbers


def test_resetting_takes_the_start_image_away_and_undo_brings_it_back(open_page: Open) -> None:
    page = open_page()
    drop(page, picture("teal", (64, 96)), "#drop-source")
    page.click("#draw-mask")
    page.focus("#mask-canvas")
    page.keyboard.press("Space")
    page.click("#mask-done")
    expect(page.locator(".mask-over")).to_be_visible()
    page.fill("#f-strength", "0.4")
    page.check("#f-live")
    page.get_by_label("Reset everything").click()
    expect(page.locator(".source-size")).to_have_count(0)
    expect(page.locator("#f-live")).not_to_be_checked()
    assert (page.input_value("#f-strength"), page.input_value("#f-width")) == ("", "")
    page.get_by_text("Undo", exact=True).click()
    expect(page.locator(".source-size")).to_have_text("64 × 96")
    expect(page.locator(".mask-over")).to_be_visible()
    expect(page.locator("#f-live")).to_be_checked()
    assert page.input_value("#f-strength") == "0.4"


@pytest.mark.parametrize("start", [False, True], ids=["without", "with"])
def test_a_cancelled_inpaint_leaves_the_form_as_it_was(open_page: Open, start: bool) -> None:
    page = open_page()
    draw(page, "fox", {"#f-steps": "2"})
    result(page, "fox")
    if start:
        drop(page, picture("teal", (64, 96)), "#drop-source")
        expect(page.locator(".source-size")).to_have_text("64 × 96")
    before = [page.input_value(field) for field in ("#f-width", "#f-height")]
    for leave in ("Escape", "button"):
        page.click("#act-inpaint")
        expect(page.locator("#mask-canvas")).to_be_focused()
        if leave == "Escape":
            page.keyboard.press("Escape")
        else:
            page.locator(".mask-dialog .dialog-foot .button").first.click()
        expect(page.locator(".source-size")).to_have_text(["64 × 96"] if start else [])
        expect(page.locator("#f-width")).to_have_value(before[0])
        expect(page.locator("#f-height")).to_have_value(before[1])
    page.dblclick("#act-inpaint")  # one editor, not two
    expect(page.locator("#mask-canvas")).to_be_focused()
    page.keyboard.press("Space")
    page.click("#mask-done")
    expect(page.locator(".mask-over")).to_be_visible()
    expect(page.locator("dialog")).to_have_count(0)


def test_the_track_of_the_brush_size_ends_at_its_knob(open_page: Open) -> None:
    page = open_page()
    drop(page, picture("white"), "#drop-source")
    page.click("#draw-mask")
    parts = (
        """([range]) => [parseFloat(range.style.getPropertyValue("--part")), 100 * (range.value - range.min) / (range.max - range.min)]"""
    )
    seen: list[float] = []
    for key in ("", "ArrowRight", "End"):
        page.focus("#mask-size")
        if key:
            page.keyboard.press(key)
        coloured, knob = page.locator("#mask-size").evaluate_all(parts)
        assert abs(coloured - knob) < 0.01
        seen.append(knob)
    assert seen == sorted(set(seen))
