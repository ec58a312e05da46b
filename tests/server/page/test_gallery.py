"""Grids, comparison, and the gallery."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.server.page.browser import Open, draw, reload, result


def test_a_grid_has_an_image_for_every_pair_of_values(open_page: Open) -> None:
    page = open_page()
    page.fill("#prompt", "fox")
    page.click("#grid-open")
    page.fill("#grid-x-values", "4, 6")
    page.fill("#grid-y-values", "1-3:2")
    page.click("#grid-start")
    expect(page.locator(".grid-picture")).to_have_count(4, timeout=30_000)
    expect(page.locator("#grid thead th")).to_have_text(["Steps: 4", "Steps: 6"])
    expect(page.locator("#grid tbody th")).to_have_text(["Guidance: 1", "Guidance: 3"])
    reload(page)
    expect(page.locator(".grid-picture")).to_have_count(4)
    page.locator(".grid-picture").nth(1).click()
    expect(page.locator("[data-fact=steps]")).to_have_text("6 steps")


def test_two_images_are_compared_and_their_differences_named(open_page: Open) -> None:
    page = open_page()
    for steps in ("5", "9"):
        draw(page, "rocket", {"#f-seed": "7", "#f-steps": steps})
        expect(page.locator("[data-fact=steps]")).to_have_text(f"{steps} steps")
    page.click("#act-compare")
    expect(page.locator("#compare-table tbody")).to_contain_text("Steps")
    expect(page.locator("#compare-table tbody tr")).to_have_count(1)
    page.focus("#compare-slider")
    page.keyboard.press("ArrowRight")
    assert float(page.input_value("#compare-slider")) > 50
    page.keyboard.press("Escape")
    expect(page.locator("#result")).to_be_visible()


def test_a_deleted_image_comes_back(open_page: Open) -> None:
    page = open_page()
    draw(page, "tiger")
    result(page, "tiger")
    tiles = page.locator(".tile[title=tiger]").count()
    page.click("#act-delete")
    expect(page.locator(".tile[title=tiger]")).to_have_count(tiles - 1)
    page.get_by_text("Undo", exact=True).click()
    expect(page.locator(".tile[title=tiger]")).to_have_count(tiles)


def test_details_show_what_the_file_says(open_page: Open) -> None:
    page = open_page()
    draw(page, "koala", {"#f-seed": "77"})
    result(page, "koala")
    page.click("#act-details")
    expect(page.locator("dialog .settings-table")).to_contain_text("77")
    page.click("dialog .raw summary")
    expect(page.locator("dialog pre")).to_contain_text("model_hash")
    page.click("dialog .marks summary")
    expect(page.locator("dialog .marks")).to_contain_text("Does not prove")
    expect(page.locator("dialog .marks summary")).to_contain_text("Origin: marked, without a signature")


def test_the_gallery_is_searched_by_prompt(open_page: Open) -> None:
    page = open_page()
    draw(page, "penguin")
    result(page, "penguin")
    draw(page, "camel")
    result(page, "camel")
    page.fill("#gallery-search", "pengu")
    expect(page.locator(".tile[title=camel]")).to_have_count(0)
    expect(page.locator(".tile[title=penguin]")).not_to_have_count(0)
    page.fill("#gallery-search", "no such thing")
    expect(page.locator(".side-empty", has_text="no such thing")).to_be_visible()


def test_a_setting_that_one_record_leaves_out_is_no_difference(open_page: Open) -> None:
    page = open_page()
    draw(page, "boat", {"#f-seed": "7", "#f-steps": "4"})
    result(page, "boat")
    page.get_by_text("Exact", exact=True).click()  # the default, but said
    draw(page, "boat", {"#f-hires": "1"} if page.locator("#f-hires").is_visible() else {})
    result(page, "boat")
    page.click("#act-compare")
    expect(page.locator("#compare-table tbody tr")).to_have_text(["No setting differs"])
    page.keyboard.press("Escape")
    page.click("#act-details")
    expect(page.locator("dialog .settings-table th", has_text="Quality")).to_have_count(1)
    expect(page.locator("dialog .settings-table th", has_text="Images")).to_have_count(0)


def test_each_image_of_several_tells_its_own_time(open_page: Open) -> None:
    page = open_page()
    draw(page, "kite", {"#f-count": "3", "#f-steps": "30"})
    result(page, "kite")
    times: list[float] = []
    for place in range(3):
        page.locator(".strip-item").nth(place).click()
        times.append(float(page.locator("[data-fact=time]").inner_text().removesuffix(" s")))
    job = page.evaluate("""async () => (await import("/assets/store.js")).store.jobs.values().find((job) => job.prompt === "kite")""")
    assert sum(times) <= job["ended"] - job["started"] + 0.2
