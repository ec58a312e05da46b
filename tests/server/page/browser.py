"""What the tests of the page do with it, in a user's words."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from PIL import Image, PngImagePlugin
from playwright.sync_api import Locator, Page, expect

from tests.support.server_process import Server

PAGE = Path(__file__).parents[3] / "server" / "page"
Open = Callable[..., Page]
LONG = {"#f-count": "8", "#f-steps": "80"}
"""Settings that take the demo model long enough to watch it."""


def forget(server: Server) -> None:
    """Empty the queue, stop what runs, and forget the settings that the page keeps on the server."""
    for job in server.client.get("/api/v1/jobs").json()["jobs"]:
        if job["status"] in {"queued", "running"}:
            server.client.delete(f"/api/v1/jobs/{job['id']}")
    server.client.put("/api/v1/settings", json={"settings": {}})


def ready(page: Page) -> Page:
    """The page, once it is built."""
    page.wait_for_selector("html[data-ready]")
    return page


def reload(page: Page) -> Page:
    """The page, once it is built again."""
    page.reload()
    return ready(page)


def draw(page: Page, prompt: str = "red apple, flat style, blue background", settings: dict[str, str] | None = None) -> None:
    """Generate an image of `prompt`, with other settings in the form's fields."""
    page.fill("#prompt", prompt)
    for field, value in (settings or {}).items():
        page.fill(field, value)
    page.evaluate("document.querySelector('#result')?.setAttribute('data-old', '')")
    page.click("#generate")


def result(page: Page, prompt: str) -> Locator:
    """The finished image of `prompt` on the stage."""
    found = page.locator(f'#result[alt="{prompt}"]:not([data-old])')
    expect(found).to_be_visible(timeout=30_000)
    return found


def picture(color: str, size: tuple[int, int] = (128, 128), text: str | None = None) -> bytes:
    """A PNG of one colour, with A1111's settings in it if there is a `text`."""
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def drop(page: Page, content: bytes, zone: str, name: str = "dropped.png", kind: str = "image/png") -> None:
    """Drop a file on one of the two zones that appear while a file is dragged."""
    data = page.evaluate_handle(
        """([text, name, type]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            return transfer;
        }""",
        [base64.b64encode(content).decode(), name, kind],
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": data})
    page.dispatch_event(zone, "drop", {"dataTransfer": data})


def file_of(page: Page) -> bytes:
    """The file of the image on the stage, as the server has it."""
    return page.request.get(page.url.rstrip("/") + str(page.get_attribute("#result", "src"))).body()


def pixels(page: Page) -> Image.Image:
    """The image on the stage, as the server has it."""
    return Image.open(io.BytesIO(file_of(page))).convert("RGB")


def axe(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is now."""
    answer = Axe().run(page, options={"resultTypes": ["violations"]}).response
    return [f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}" for one in answer["violations"]]


def waiting(page: Page) -> list[str]:
    """Titles of the jobs that wait, in order."""
    return page.locator(".job.queued .job-title").all_inner_texts()


def open_page_again(page: Page) -> Page:
    """A second tab."""
    other = page.context.new_page()
    other.goto(page.url)
    return ready(other)
