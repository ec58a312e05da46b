"""The queue, and what a reload or another device finds."""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from tests.server.page.browser import LONG, Open, draw, open_page_again, reload, waiting
from tests.support.server_process import Server


def test_waiting_jobs_are_moved_by_mouse_and_by_keys(open_page: Open) -> None:
    page = open_page()
    for prompt in ("octopus", "fox", "owl", "bear"):
        draw(page, prompt, LONG)
    expect(page.locator(".job.queued")).to_have_count(3)
    assert waiting(page) == ["fox", "owl", "bear"]
    page.locator(".job.queued", has_text="bear").drag_to(page.locator(".job.queued", has_text="fox"))
    expect(page.locator(".job.queued .job-title")).to_have_text(["bear", "fox", "owl"])
    page.locator(".job.queued", has_text="owl").focus()
    page.keyboard.press("Alt+ArrowUp")
    expect(page.locator(".job.queued .job-title")).to_have_text(["bear", "owl", "fox"])
    page.locator(".job.queued", has_text="fox").hover()
    page.locator(".job.queued", has_text="fox").get_by_label("Drop what runs and start this").click()
    expect(page.locator(".job.running .job-title")).to_have_text("fox")
    other = open_page_again(page)
    assert waiting(other) == ["bear", "owl"]  # the order is the server's
    other.click("#queue-clear")
    expect(page.locator(".job.queued")).to_have_count(0)
    page.click("#cancel-running")


def test_a_reload_in_the_middle_loses_nothing(open_page: Open) -> None:
    page = open_page()
    draw(page, "octopus", LONG)
    expect(page.locator("#progress")).to_contain_text("Step")
    page.fill("#prompt", "half a though")
    page.fill("#negative", "blurry")
    page.fill("#f-steps", "7")
    reload(page)
    assert page.input_value("#prompt") == "half a though"
    assert page.input_value("#negative") == "blurry"
    assert page.input_value("#f-steps") == "7"
    expect(page.locator("#progress")).to_contain_text("Step")
    expect(page.locator(".job.running .job-title")).to_have_text("octopus")
    page.click("#cancel")


def test_failed_jobs_are_dismissed_together_and_stay_so(open_page: Open, server: Server) -> None:
    (server.data / "loras" / "broken.safetensors").write_bytes(b"no tensors")
    page = open_page()
    for number in range(4):
        draw(page, f"fox {number} <lora:broken:0.8>")
    expect(page.locator(".job.failed")).to_have_count(3)  # the last of them
    page.locator(".job.failed").first.get_by_label("Dismiss").click()
    expect(page.locator(".job.failed")).to_have_count(3)  # the fourth one moved up
    page.click("#queue-dismiss")
    expect(page.locator(".job.failed")).to_have_count(0)
    reload(page)
    expect(page.locator("#gallery-search")).to_be_visible()
    expect(page.locator(".job.failed")).to_have_count(0)


def test_what_was_typed_is_there_on_another_device(open_page: Open, chromium: Browser, server: Server) -> None:
    page = open_page()
    with page.expect_request(lambda request: request.method == "PUT" and request.url.endswith("/settings")):
        page.fill("#prompt", "a thought worth keeping")
    other = chromium.new_context(locale="en-GB")
    elsewhere = other.new_page()
    elsewhere.goto(f"{server.url}/")
    elsewhere.wait_for_selector("html[data-ready]")
    assert elsewhere.input_value("#prompt") == "a thought worth keeping"
    other.close()
