"""What impatient people do: wrong files, odd prompts, things in an unexpected order."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.server.page.browser import LONG, Open, draw, drop, open_page_again, picture, ready, result


def test_files_that_are_no_images_are_told_and_change_nothing(open_page: Open) -> None:
    page = open_page()
    page.fill("#prompt", "kept")
    drop(page, b"only text", "#drop-source", "notes.txt", "text/plain")
    expect(page.locator(".toast.error")).to_contain_text("image")
    drop(page, b"", "#drop-source", "empty.png")
    expect(page.locator(".toast.error", has_text="empty.png")).to_be_visible()
    drop(page, b"", "#drop-settings", "empty.png")
    expect(page.locator(".toast.error", has_text="no settings")).to_have_count(0)
    expect(page.locator(".toast.error")).to_have_count(2)  # no more at once
    drop(page, picture("red")[:60], "#drop-source", "half.png")
    expect(page.locator(".toast.error", has_text="half.png")).to_be_visible()
    expect(page.locator(".source-size")).to_have_count(0)
    assert page.input_value("#prompt") == "kept"


def test_prompts_of_any_length_and_any_letters(open_page: Open) -> None:
    page = open_page()
    emoji = "🦊 na\u00efve \u4e2d\u6587 \u05e9\u05dc\u05d5\u05dd \u0301 {x} \\ <b>fox</b>"
    draw(page, emoji, {"#f-steps": "2"})
    expect(page.locator("#result")).to_have_attribute("alt", emoji)
    expect(page.locator(".caption-prompt")).to_have_text(emoji)
    draw(page, "fox, " * 10_000)
    expect(page.locator("[data-field=prompt] .field-error")).to_contain_text("50,000 characters")
    page.reload()
    assert len(ready(page).input_value("#prompt")) == 50_000


def test_clicks_in_a_hurry_and_a_second_tab(open_page: Open) -> None:
    page = open_page()
    page.fill("#prompt", "octopus")
    for field, value in LONG.items():
        page.fill(field, value)
    page.dblclick("#generate")
    expect(page.locator("#jobs .job")).to_have_count(2)
    other = open_page_again(page)
    expect(other.locator("#jobs .job")).to_have_count(2)
    other.bring_to_front()
    other.dblclick("#cancel-running")  # twice the same job
    expect(page.locator("#jobs .job")).to_have_count(1)
    expect(page.locator("#jobs .running")).to_have_count(1)
    other.click("#cancel-running")
    expect(page.locator("#jobs .job")).to_have_count(0)
    other.close()
    page.bring_to_front()
    draw(page, "owl", {"#f-count": "1", "#f-steps": "2"})
    result(page, "owl")
    tiles = page.locator(".tile").count()
    for _ in range(2):
        page.keyboard.press("Escape")
        page.locator(".tile").first.focus()
        page.keyboard.press("Delete")
    expect(page.locator(".tile")).to_have_count(max(0, tiles - 2))
    for _ in range(2):
        page.keyboard.press("Control+z")
    expect(page.locator(".tile")).to_have_count(tiles)


def test_the_back_button_loses_nothing(open_page: Open) -> None:
    page = open_page()
    page.fill("#prompt", "kept")
    page.goto(f"{page.url}api/v1/docs")
    page.go_back()
    assert ready(page).input_value("#prompt") == "kept"
