"""The site in a real browser, from a plain file server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page

import diffusette
from diffusette.models.bundle import DEMO, open_bundle
from diffusette.runtime.metadata import image_files
from diffusette.runtime.metadata.record import tool
from diffusette.shipping.browser.single_file import write_single_file
from diffusette.shipping.browser.write_site import write_site
from tests.support import chromium as chromiums
from tests.support.npm_packages import Missing

Visit = Callable[..., Page]
PROMPT = "red apple, flat style, blue background"
LONG = 60_000


class Quiet(SimpleHTTPRequestHandler):
    """What `python -m http.server` is, without its log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(ort_web: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of the demo model's site, and where it is served."""
    folder = tmp_path_factory.mktemp("served") / "site"
    write_site(open_bundle(DEMO), folder, tool=tool(), runtime=ort_web)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder.parent)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/site/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        with chromiums.launched() as opened:
            yield opened
    except Missing as error:
        pytest.skip(str(error))


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """Open the site as a new visitor; afterwards the browser complained of nothing, and asked no other host."""
    contexts: list[Any] = []
    asked: list[str] = []
    complaints: list[str] = []

    def opened(url: str, **options: Any) -> Page:
        context = chromium.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.set_default_timeout(LONG)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
        page.goto(url)
        return ready(page)

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:", "file:", "data:"))} == set()


def ready(page: Page) -> Page:
    page.wait_for_selector("body[data-state=idle]")
    return page


def drawn(page: Page, prompt: str, seed: int) -> None:
    page.fill("#prompt", prompt)
    page.fill("#seed", str(seed))
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("body[data-state=drawing]")
    ready(page)
    page.wait_for_selector("#result")


def saved(page: Page, path: Path) -> Path:
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "red-apple-flat-style-blue-background-7.png"
    download.value.save_as(path)
    return path


def psnr(a: Image.Image, b: Image.Image) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2), 1e-9)))


def test_a_visitor_draws_saves_cancels_and_goes_on_without_a_network(site: tuple[Path, str], visit: Visit, tmp_path: Path) -> None:
    _, url = site
    page = visit(f"{url}?threads=2")
    assert "with one thread; after a reload of the page, with 2." in page.inner_text("#small")
    assert "The first image loads 41\u00a0MB" in page.inner_text("#small")
    assert "of memory" in page.inner_text("#small")
    seen: list[str] = []
    page.expose_function("seen", lambda text: seen.extend([text]))
    page.evaluate("new MutationObserver(() => seen(document.querySelector('#progress-text').textContent)).observe("
                  "document.querySelector('#progress-text'), {childList: true, characterData: true, subtree: true})")  # fmt: skip
    drawn(page, PROMPT, 7)
    assert any(text.startswith("Loading the model: ") for text in seen)
    assert "Opening the U-Net" in seen
    assert "Step 9 of 10" in seen
    with diffusette.load(provider="cpu") as pipeline:
        expected = pipeline.generate(PROMPT, seed=7)
    first = saved(page, tmp_path / "first.png")
    assert psnr(Image.open(first), expected.images[0]) >= 40.0
    found = image_files.read(first)
    assert found.ai
    assert found.record is not None
    assert (found.record.prompt, found.record.seed, found.record.model) == (PROMPT, 7, "diffusette-demo")

    page.click("summary")
    page.fill("#steps", "50")
    page.click("#generate")
    page.wait_for_selector("#progress-text:has-text('Step 2')")
    assert page.evaluate("document.querySelector('#preview').getContext('2d').getImageData(5, 5, 1, 1).data[3]") == 255
    page.keyboard.press("Escape")
    ready(page)
    assert page.inner_text("#announce") == "Cancelled."
    assert page.is_visible("#result")

    page.fill("#steps", "10")
    page.context.set_offline(True)
    page.reload()
    ready(page)
    assert page.evaluate("crossOriginIsolated")
    assert "no network is needed" in page.inner_text("#small")
    assert "It draws with 2 threads." in page.inner_text("#small")
    assert page.input_value("#prompt") == PROMPT
    drawn(page, PROMPT, 7)
    assert psnr(Image.open(saved(page, tmp_path / "offline.png")), Image.open(first)) >= 50.0


def test_wrong_settings_and_changed_files_are_told_in_the_readers_language(site: tuple[Path, str], visit: Visit) -> None:
    folder, url = site
    changed = folder.parent / "changed"
    shutil.copytree(folder, changed)
    weights = changed / "model" / "unet" / "model.onnx_data"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    page = visit(url.replace("/site/", "/changed/"), locale="de-DE")
    page.click("summary")
    page.fill("#width", "100")
    page.click("#generate")
    assert page.inner_text("#error") == "Breite und Höhe müssen Vielfache von 8 sein, von 8 bis 2048."
    page.fill("#width", "128")
    page.click("#generate")
    page.wait_for_selector("#error:has-text('model/unet/model.onnx_data')")
    assert "wurde unterwegs verändert" in page.inner_text("#error")
    assert page.is_enabled("#generate")


def test_one_file_draws_from_the_disk_without_any_server(ort_web: Path, visit: Visit, tmp_path: Path) -> None:
    write_single_file(open_bundle(DEMO), tmp_path / "site.html", tool=tool(), runtime=ort_web)
    page = visit((tmp_path / "site.html").as_uri())
    assert "The model is in this file" in page.inner_text("#small")
    drawn(page, PROMPT, 7)
    with diffusette.load(provider="cpu") as pipeline:
        assert psnr(Image.open(saved(page, tmp_path / "image.png")), pipeline.generate(PROMPT, seed=7).images[0]) >= 40.0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_accessible_and_fits_a_phone(site: tuple[Path, str], visit: Visit, theme: Any) -> None:
    page = visit(site[1], color_scheme=theme, viewport={"width": 360, "height": 700}, bypass_csp=True)
    page.click("summary")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
