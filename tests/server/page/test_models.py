"""What only some models have: LoRAs, embeddings, and models that change images by instruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.server.page.browser import Open, draw, drop, file_of, picture, pixels, reload, result
from tests.server.page.conftest import Visiting
from tests.support.demo_adapters import save_embedding, save_lora
from tests.support.server_process import Server

FIXED = {"#f-seed": "5", "#f-steps": "4"}


@pytest.fixture(scope="module")
def equipped(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[[str], tuple[Path, Path]]) -> Iterator[Server]:
    """The demo model with two LoRAs and an embedding, and a tiny InstructPix2Pix model."""
    from diffusette.models.bundle import DEMO

    folder = tmp_path_factory.mktemp("equipped")
    for seed, name in enumerate(("ink", "wash")):
        save_lora(folder / "loras" / f"{name}.safetensors", seed=seed)
    save_embedding(folder / "embeddings" / "murky.safetensors")
    with Server(folder, "--model", str(DEMO), "--model", str(bundle_of("sd1-pix2pix")[1])) as started:
        yield started


@pytest.fixture
def open_equipped(visiting: Visiting, equipped: Server) -> Iterator[Open]:
    with visiting(equipped) as opened:
        yield opened


def test_the_bar_says_that_a_model_has_no_safety_checker(open_equipped: Open) -> None:
    page = open_equipped()
    expect(page.locator(".model-about")).to_contain_text("apache-2.0 · no safety checker")


def test_a_lora_is_chosen_weighed_and_taken_off_again(open_equipped: Open) -> None:
    page = open_equipped()
    draw(page, "fox", FIXED)
    result(page, "fox")
    plain = pixels(page).tobytes()
    page.get_by_text("LoRAs", exact=True).click()
    page.select_option("#f-lora-pick", "ink")
    page.get_by_label("Weight of ink").fill("0.6")
    page.keyboard.press("Tab")
    expect(page.locator(".section", has=page.locator("#f-lora-pick")).locator(".section-mark")).to_have_text("1 set")
    reload(page)
    expect(page.get_by_label("Weight of ink")).to_have_value("0.6")
    draw(page, "fox")
    expect(page.locator(".facts")).to_contain_text("ink")
    assert pixels(page).tobytes() != plain
    page.get_by_label("Remove ink").click()
    draw(page, "fox ")
    result(page, "fox ")
    assert pixels(page).tobytes() == plain


def test_an_embedding_is_one_click_away_and_used(open_equipped: Open) -> None:
    page = open_equipped()
    page.fill("#negative", "rain")
    page.get_by_role("button", name="murky").click()
    expect(page.locator("#negative")).to_have_value("rain, murky")
    with page.expect_request(lambda request: request.method == "POST" and request.url.endswith("/jobs")) as sent:
        draw(page, "owl", FIXED)
    assert sent.value.post_data_json["request"]["embeddings"] == ["murky"]
    result(page, "owl")
    assert b"murky" in file_of(page)


def test_a_model_that_changes_images_asks_for_one_and_offers_image_guidance(open_equipped: Open) -> None:
    page = open_equipped()
    expect(page.locator("#f-image_guidance")).to_be_hidden()
    options = page.locator("#model option").all()
    page.select_option("#model", next(value for one in options if "demo" not in str(value := one.get_attribute("value"))))
    expect(page.get_by_text("This model needs a start image.")).to_be_visible()
    draw(page, "make it red")
    expect(page.locator("[data-field=init] > .field-error")).to_be_visible()
    drop(page, picture("teal", (32, 32)), "#drop-source")
    page.fill("#f-image_guidance", "1.8")
    page.click("#generate")
    result(page, "make it red")
    assert pixels(page).size == (16, 16)  # the start image's shape, in the area that the model was made for
