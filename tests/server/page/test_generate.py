"""Generate, live, cancel, progress: in a real browser against a real server with the demo model."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.server.page.browser import LONG, Open, draw, pixels, result


def test_a_prompt_becomes_an_image_in_the_gallery(open_page: Open) -> None:
    page = open_page()
    draw(page, "fox, noto style, teal background")
    result(page, "fox, noto style, teal background")
    expect(page.locator(".tile[aria-current=true]")).to_have_attribute("title", "fox, noto style, teal background")
    expect(page.locator(".facts")).to_contain_text("128 × 128")
    expect(page.locator("[data-fact=steps]")).to_have_class("auto")  # nobody asked for a number of steps
    assert pixels(page).size == (128, 128)


def test_live_draws_while_one_types(open_page: Open) -> None:
    page = open_page()
    draw(page, "fox")  # opens the model
    result(page, "fox")
    tiles = page.locator(".tile").count()
    page.fill("#prompt", "")
    anyway = page.get_by_role("button", name="Use it anyway")
    page.add_locator_handler(anyway, anyway.click)  # a busy machine is too slow for it
    page.check("#f-live")
    page.locator("#prompt").press_sequentially("red apple", delay=30)
    result(page, "red apple")
    page.locator("#prompt").press_sequentially(", blue background", delay=30)
    result(page, "red apple, blue background")
    expect(page.locator(".tile")).to_have_count(tiles + 1)  # of a burst, the last one stays
    page.click("#keep-live")
    page.locator("#prompt").press_sequentially(", flat style", delay=30)
    result(page, "red apple, blue background, flat style")
    expect(page.locator(".tile")).to_have_count(tiles + 2)


def test_a_running_job_is_cancelled_with_one_click(open_page: Open) -> None:
    page = open_page()
    draw(page, "octopus", LONG)
    expect(page.locator("#progress")).to_contain_text("Step")
    page.click("#cancel")
    expect(page.locator("#jobs .running")).to_have_count(0)
    expect(page.locator("#progress")).to_have_count(0)


def test_progress_names_its_phase_and_the_time_left(open_page: Open) -> None:
    page = open_page()
    draw(page, "octopus", LONG)
    expect(page.locator(".phases .now")).to_have_text("Denoise")
    expect(page.locator(".progress-text")).to_have_text(re.compile(r"Image \d of 8 · Step \d+ of 80"))
    expect(page.locator(".progress-left")).to_have_text(re.compile(r"left"))
    expect(page).to_have_title(re.compile(r"\d+ %"))
    expect(page.locator(".preview-image")).to_be_visible()
    page.click("#cancel-running")


def test_progress_and_errors_are_said_to_screen_readers(open_page: Open) -> None:
    page = open_page()
    draw(page, "fox")
    result(page, "fox")
    expect(page.locator("#announce")).to_contain_text("Done: 1 image")
    draw(page, "fox", {"#f-guidance": "500"})
    expect(page.locator("#alert")).to_contain_text("100")


def test_forever_queues_the_next_one_until_escape(open_page: Open) -> None:
    page = open_page()
    page.fill("#prompt", "fox")
    page.fill("#f-steps", "2")
    page.click("#generate-menu")
    page.click("#generate-forever")
    expect(page.locator("#generate")).to_contain_text("Stop repeating")
    expect(page.locator(".tile[title=fox]")).not_to_have_count(1)
    page.fill("#prompt", "owl")  # what the form says then
    expect(page.locator(".tile[title=owl]")).not_to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("#generate")).to_contain_text("Generate")
    expect(page.locator("#jobs .running")).to_have_count(0)
    made = page.locator(".tile").count()
    page.wait_for_timeout(300)
    assert page.locator(".tile").count() == made


def test_forever_ends_with_a_click_or_when_an_image_is_cancelled(open_page: Open) -> None:
    page = open_page()
    page.fill("#prompt", "octopus")
    page.fill("#f-steps", "200")
    for stop in ("#generate", "#cancel-running"):
        page.click("#generate-menu")
        page.click("#generate-forever")
        expect(page.locator("#progress")).to_contain_text("Step")
        page.click(stop)
        expect(page.locator("#generate")).to_contain_text("Generate")
        if page.locator("#cancel-running").is_visible():
            page.click("#cancel-running")
        expect(page.locator("#jobs .job")).to_have_count(0)
