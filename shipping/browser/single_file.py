"""`write_single_file`: the site as one HTML file, which opens by a double click, from `file://`, without any server.

Every file of the site stands in a data block of the page, gzip in base64; `site/boot.js` turns them back. One thread, WebAssembly alone.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models.bundle import Bundle
from ...models.errors import RequestError
from ...models.formats.atomic_file import check_writable, replace_file
from .write_site import PAGE, Report, write_site

LARGEST = 300 << 20
"""Bytes of a file of the bundle: browsers hold no longer text than about 512 MB, and base64 adds a third."""
_IMPORT = re.compile(r'^import .* from "\./([\w.]+)";$', re.MULTILINE)
_UNUSED = ("app/boot.js", "app/sw.js", "app/style.css", "app/icon.svg", "app/manifest.webmanifest", "runtime/ort.webgpu")


def write_single_file(bundle: Bundle, destination: Path, *, force: bool = False, **options: Any) -> Report:
    """Write the site of `bundle` as the HTML file `destination`, whole or not at all. `options` are those of `write_site`.

    Raises:
        RequestError: the name does not end in .html, the file exists and `force` is off, or the bundle is too large for one file; or what
            `write_site` raises.
    """
    if destination.suffix.lower() not in {".html", ".htm"}:
        raise RequestError(f"{destination}: expected the name of a file that ends in .html")
    if destination.exists() and not force:
        raise RequestError(f"{destination} already exists; choose another name, or replace it with --force")
    large = [name for name, file in bundle.manifest.files.items() if file.size > LARGEST]
    if large:
        raise RequestError(f"{bundle.folder}: {large[0]} is larger than {LARGEST >> 20} MiB, too large for one file: write a folder")
    check_writable(destination)
    folder = destination.parent / f".{destination.name}.{secrets.token_hex(4)}.partial"
    try:
        report = write_site(bundle, folder, **options)
        page = _page(folder).encode()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    replace_file(destination, page)
    return replace(report, files=1, size=len(page), download=len(page))


def _page(site: Path) -> str:
    paths = sorted(path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file() and path.parent != site)
    needed = ["site.json", *(path for path in paths if not path.startswith(_UNUSED))]
    modules = ["runtime/ort.wasm.js", *_ordered({path: (site / path).read_text("utf-8") for path in needed if _is_module(path)})]
    blocks = "".join(f'<script type="text/plain" data-path="{path}">{_packed((site / path).read_bytes())}</script>\n' for path in needed)
    style, boot = (site / "app" / "style.css").read_text("utf-8"), (PAGE / "boot.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src 'sha256-{_hash(boot)}' blob: 'wasm-unsafe-eval'; style-src 'sha256-{_hash(style)}'; "
        "img-src blob: data:; worker-src blob:; base-uri 'none'; form-action 'none'"
    )
    icon = base64.b64encode((site / "app" / "icon.svg").read_bytes()).decode()
    text = (site / "index.html").read_text("utf-8")
    for pattern, instead in (
        (r'(?<=Content-Security-Policy" content=")[^"]+', policy),
        (r'<html lang="en"', f'<html lang="en" data-modules="{" ".join(modules)}"'),
        (r"\./app/icon\.svg", f"data:image/svg+xml;base64,{icon}"),
        (r' *<link rel="manifest"[^>]*>\n', ""),
        (r'<link rel="stylesheet"[^>]*>', f"<style>{style}</style>"),
        (r' *<script type="importmap">[^<]*</script>\n', ""),
        (r' *<script type="module"[^>]*></script>\n', ""),
        (r"</body>", f"{blocks}<script>{boot}</script>\n</body>"),
    ):
        text, count = re.subn(pattern, lambda _, new=instead: new, text, count=1)
        assert count, pattern
    return text


def _is_module(path: str) -> bool:
    return path.startswith("app/") and path.endswith(".js")


def _ordered(sources: dict[str, str]) -> list[str]:
    """The modules, each after those that it imports."""
    imports = {path: {f"app/{name}" for name in _IMPORT.findall(text)} for path, text in sources.items()}
    done: list[str] = []
    while len(done) < len(imports):
        ready = sorted(path for path, needed in imports.items() if path not in done and needed <= set(done))
        assert ready, f"a circle among {sorted(imports.keys() - set(done))}"
        done += ready
    return done


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
