"""Screenshots of the page: `make screenshots` writes those of the docs; with a folder, those of every state, for the eyes.

python -m tests.support.page_screenshots [FOLDER]
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.server.page import browser
from tests.support import chromium
from tests.support.demo_adapters import save_embedding, save_lora
from tests.support.server_process import Server

DOCS = Path(__file__).parents[2] / "docs"
PROMPTS = (
    "octopus, noto style, yellow background",
    "red apple, flat style, blue background",
    "rocket, flat style, purple background",
    "cactus, flat style, pink background",
    "owl, noto style, green background",
    "penguin, flat style, orange background",
    "mushroom, noto style, blue background",
    "tiger, noto style, white background",
    "fox, noto style, teal background",
)
DESK = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def fill_gallery(server: Server) -> None:
    """Images of all prompts, and an empty queue."""
    for place, prompt in enumerate(PROMPTS):
        server.ended(server.submit(prompt, seed=20 + place, steps=12))


def start(page: Page) -> None:
    """The newest image on the stage."""
    page.locator(".tile").first.click()
    page.fill("#prompt", PROMPTS[-1])
    expect(page.locator("#result")).to_be_visible()


def mask(page: Page) -> None:
    """A mask over the middle."""
    start(page)
    page.click("#act-inpaint")
    box = page.locator("#mask-canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 90, y - 60)
    page.mouse.down()
    for shift in range(-90, 100, 30):
        page.mouse.move(x + shift, y + abs(shift) / 2 - 60, steps=4)
    page.mouse.up()


def queue(page: Page) -> None:
    """One that runs, and three that wait."""
    for prompt in PROMPTS[:4]:
        browser.draw(page, prompt, {"#f-count": "8", "#f-steps": "400"})
    expect(page.locator(".progress-left")).to_contain_text("left")
    expect(page.locator(".preview-image")).to_be_visible()


def compare(page: Page) -> None:
    """The two newest images."""
    start(page)
    page.click("#act-compare")
    expect(page.locator("#compare-table tbody tr").first).to_be_visible()


def grid(page: Page) -> None:
    """Steps times guidance."""
    page.fill("#prompt", PROMPTS[-1])
    page.click("#grid-open")
    page.fill("#grid-x-values", "2, 4, 8, 16")
    page.fill("#grid-y-values", "1, 2.5, 6")
    page.click("#grid-start")
    expect(page.locator(".grid-picture")).to_have_count(12, timeout=60_000)


def sections(page: Page) -> None:
    """Everything unfolded, in a window tall enough for it."""
    page.set_viewport_size({"width": 1440, "height": 2300})
    start(page)
    for summary in page.locator(".section summary").all():
        summary.click()
    page.select_option("#f-lora-pick", index=1)


def clicked(selector: str) -> Callable[[Page], None]:
    """Click there, with an image on the stage."""

    def state(page: Page) -> None:
        start(page)
        page.click(selector)

    return state


def field_error(page: Page) -> None:
    """A value out of range."""
    start(page)
    browser.draw(page, PROMPTS[-1], {"#f-guidance": "500"})
    expect(page.locator("[data-field=guidance] .field-error")).to_be_visible()


def forever(page: Page) -> None:
    """The menu of the generate button."""
    start(page)
    page.click("#generate-menu")


STATES: dict[str, Callable[[Page], None]] = {
    "image": start,
    "mask": mask,
    "queue": queue,
    "compare": compare,
    "grid": grid,
    "sections": sections,
    "details": clicked("#act-details"),
    "keys": clicked("#keys-help"),
    "gallery": clicked("#gallery-wide"),
    "presets": clicked("#presets"),
    "preferences": clicked("#preferences"),
    "error": field_error,
    "menu": forever,
}


def shoot(opened: Browser, server: Server, state: Callable[[Page], None], **options: Any) -> bytes:
    """A PNG of the page in that state, as a new visitor sees it."""
    browser.forget(server)
    context = opened.new_context(**{"locale": "en-GB", "reduced_motion": "reduce", **DESK, **options})
    page = context.new_page()
    page.goto(f"{server.url}/")
    browser.ready(page)
    state(page)
    page.wait_for_timeout(400)  # images decode, toasts settle
    found = page.screenshot()
    context.close()
    return found


def every(opened: Browser, folder: Path) -> None:
    """Each state, light and dark; some on a phone and in German."""
    with tempfile.TemporaryDirectory() as data:
        save_lora(Path(data) / "loras" / "ink.safetensors")
        save_embedding(Path(data) / "embeddings" / "murky.safetensors")
        with Server(Path(data)) as server:
            looks: dict[str, dict[str, Any]] = {"light": {}, "dark": {"color_scheme": "dark"}}
            for look, options in looks.items():
                (folder / f"{look}-empty.png").write_bytes(shoot(opened, server, lambda _page: None, **options))
            fill_gallery(server)
            looks["phone"] = PHONE
            looks["german"] = {"locale": "de-DE"}
            for look, options in looks.items():
                for name, state in STATES.items():
                    if look in {"phone", "german"} and name in {"keys", "presets", "grid", "compare"}:
                        continue
                    try:
                        (folder / f"{look}-{name}.png").write_bytes(shoot(opened, server, state, **options))
                    except Exception as error:  # noqa: BLE001  # the others are worth seeing
                        print(look, name, str(error)[:200])


def for_docs(opened: Browser, folder: Path = DOCS) -> None:
    """The three of the docs, as WebP."""
    with tempfile.TemporaryDirectory() as data, Server(Path(data)) as server:
        fill_gallery(server)
        for name, state, options in (("page", start, {}), ("page-mask", mask, {}), ("page-dark", compare, {"color_scheme": "dark"})):
            image = Image.open(io.BytesIO(shoot(opened, server, state, **options))).convert("RGB")
            image.save(folder / f"{name}.webp", quality=82, method=6)


def main(folder: str | None = None) -> None:
    """Start the browser and shoot."""
    with chromium.launched() as opened:
        if folder is None:
            for_docs(opened)
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            every(opened, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
