"""`write_site`: a bundle becomes a folder for any static web server.

```
index.html  sw.js  site.json  _headers     the page, its service worker, what the page has to know, headers for some hosts
app/        modules, styles, texts         runtime/    ONNX Runtime Web        model/      the files of the bundle
```

`site.json` has the SHA-256 of every file, and the service worker and the import map repeat those of the page: a file that was changed
on the way is not run.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ...models.bundle import Bundle
from ...models.errors import BundleError, RequestError, ResourceError
from ...models.manifest import FILE_NAME, encode, fingerprint
from . import fit, web_runtime

PAGE = Path(__file__).parent / "site"
SITE = "site.json"
HEADERS = "/*\n  Cross-Origin-Opener-Policy: same-origin\n  Cross-Origin-Embedder-Policy: require-corp\n"
"""Netlify and Cloudflare Pages read `_headers`. With these two, WebAssembly may use threads."""
DEMO_EXAMPLES = (
    "red apple, flat style, blue background",
    "fox, noto style",
    "castle, flat style",
    "sunflower, noto style, green background",
)
_SHELL = (".js", ".css", ".json", ".svg", ".webmanifest")
"""What the service worker keeps from the start; the model and WebAssembly come when the first image is asked for."""
_ROOT = ("index.html", "sw.js", "boot.js")
_PIECE = 1 << 20

Advance = Callable[[str, float], None]


@dataclass(frozen=True)
class Report:
    """What was written."""

    files: int
    size: int
    """Bytes of the whole site."""
    download: int
    """Bytes that a visitor's first image takes, uncompressed."""
    memory: int
    """An estimate of the bytes that drawing takes in a tab."""
    notes: tuple[str, ...]


def write_site(
    bundle: Bundle,
    destination: Path,
    *,
    tool: str,
    runtime: Path | None = None,
    title: str = "",
    examples: Sequence[str] = (),
    force: bool = False,
    advance: Advance = lambda _what, _fraction: None,
) -> Report:
    """Write the site of `bundle` to `destination`, whole or not at all.

    Args:
        bundle: an opened bundle; its files are checked against its manifest on the way.
        destination: a folder that does not exist yet; with `force`, an older site is replaced.
        tool: name and version of the program, for the metadata of images.
        runtime: the npm package of ONNX Runtime Web, a folder or .tgz; None downloads it.
        title: of the page; by default the model's name.
        examples: prompts to try, as buttons.
        force: replace an older site.
        advance: called with what is being done and the fraction done.

    Raises:
        RequestError: the bundle cannot be drawn in a browser, or the destination or the runtime is not what it has to be.
        BundleError: a file of the bundle is damaged.
        ResourceError: the disk is full, or the runtime cannot be downloaded.
    """
    fit.check(bundle)
    manifest = bundle.manifest
    parts = (*web_runtime.WASM, *(web_runtime.WEBGPU if manifest.target == "portable" else ()))
    with _staged(destination, force=force) as stage:
        binaries = web_runtime.runtime_files(parts, runtime, advance)
        for name, data in binaries.items():
            _write(stage / "runtime" / name, data)
        _write(stage / "runtime" / "LICENSE.txt", web_runtime.LICENCE.encode())
        _copy_model(bundle, stage / "model", advance)
        for path in sorted(PAGE.iterdir()):
            if path.name not in _ROOT:
                _write(stage / "app" / path.name, path.read_bytes())
        app = json.loads((PAGE / "manifest.webmanifest").read_text("utf-8")) | {"name": title or manifest.source.name}
        _write(stage / "app" / "manifest.webmanifest", json.dumps(app, indent=1, ensure_ascii=False).encode())
        needed = [FILE_NAME, *fit.files_of(manifest)]
        facts: dict[str, Any] = {
            "title": title or manifest.source.name,
            "tool": tool,
            "examples": list(examples or (DEMO_EXAMPLES if manifest.source.name == "diffusette-demo" else ())),
            "model": {
                "name": manifest.source.name,
                "licence": manifest.source.licence,
                "hash": fingerprint(manifest),
                "files": needed,
                "papers": fit.papers_of(manifest),
            },
            "runtime": {"version": web_runtime.VERSION, "webgpu": len(parts) > len(web_runtime.WASM)},
            "memory": fit.memory(manifest)._asdict(),
            "files": _hashes(stage),
        }
        _write(stage / SITE, json.dumps(facts, indent=1, ensure_ascii=False).encode())
        _write(stage / "index.html", _index(facts).encode())
        _write(stage / "sw.js", _service_worker(facts, stage).encode())
        _write(stage / "_headers", HEADERS.encode())
        written = [path for path in stage.rglob("*") if path.is_file()]
        return Report(
            files=len(written),
            size=sum(path.stat().st_size for path in written),
            download=sum(len(binaries[part.written]) for part in web_runtime.WASM)
            + sum((stage / "model" / name).stat().st_size for name in needed)
            + sum(path.stat().st_size for path in written if path.parent in {stage, stage / "app"}),
            memory=fit.peak(manifest),
            notes=_notes(bundle, fit.peak(manifest)),
        )


def _notes(bundle: Bundle, memory: int) -> tuple[str, ...]:
    found: list[str] = []
    if memory > fit.LARGE:
        found.append(f"drawing takes about {memory / 2**30:.1f} GiB of memory in a tab, which phones and small PCs do not have")
    if bundle.manifest.source.licence == "unknown":
        found.append("the licence of the weights is unknown: make sure that you may publish them")
    if bundle.manifest.defaults.width * bundle.manifest.defaults.height >= 512 * 512:
        found.append("an image of this size takes minutes on a processor in a browser")
    return tuple(found)


def _copy_model(bundle: Bundle, folder: Path, advance: Advance) -> None:
    """Copy what drawing needs, and licence and model card, hashing on the way."""
    files = bundle.manifest.files
    names = [*fit.files_of(bundle.manifest), *fit.papers_of(bundle.manifest)]
    total, done = sum(files[name].size for name in names), 0
    for name in names:
        digest, target = hashlib.sha256(), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with bundle.path(name).open("rb") as source, target.open("xb") as copy:
            while piece := source.read(_PIECE):
                digest.update(piece)
                copy.write(piece)
                done += len(piece)
                advance(f"copying {name}", done / max(total, 1))
        if digest.hexdigest() != files[name].sha256:
            raise BundleError(f"{bundle.path(name)}: changed since the export (SHA-256); check it with `diffusette verify {bundle.folder}`")
    _write(folder / FILE_NAME, encode(bundle.manifest))


def _hashes(stage: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(stage.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            found[path.relative_to(stage).as_posix()] = {"size": path.stat().st_size, "sha256": base64.b64encode(digest).decode()}
    return found


def _index(facts: Mapping[str, Any]) -> str:
    """The page: with its title, the hashes of its modules in an import map, and a policy that allows that one inline script."""
    files: Mapping[str, Mapping[str, Any]] = facts["files"]
    modules = {f"./{name}": f"sha256-{file['sha256']}" for name, file in files.items() if name.startswith("app/") and name.endswith(".js")}
    import_map = json.dumps({"integrity": modules}, separators=(",", ":"))
    digest = base64.b64encode(hashlib.sha256(import_map.encode()).digest()).decode()
    text = (PAGE / "index.html").read_text("utf-8")
    for name in ("app/style.css", "app/main.js"):
        text = text.replace(f"{{{{{name}}}}}", f"sha256-{files[name]['sha256']}")
    text = text.replace("{{import map}}", import_map).replace("{{import map hash}}", f"sha256-{digest}")
    return text.replace("{{title}}", escape(str(facts["title"])))


def _service_worker(facts: Mapping[str, Any], stage: Path) -> str:
    """The service worker, with the hashes of what the page consists of."""
    listed: Mapping[str, Mapping[str, Any]] = facts["files"]
    files: dict[str, str] = {
        name: file["sha256"] for name, file in listed.items() if name.startswith(("app/", "runtime/")) and name.endswith(_SHELL)
    }
    for name in ("index.html", SITE):
        files[name] = base64.b64encode(hashlib.sha256((stage / name).read_bytes()).digest()).decode()
    return (PAGE / "sw.js").read_text("utf-8").replace("/* FILES */ {}", json.dumps(files, indent=1))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextmanager
def _staged(destination: Path, *, force: bool) -> Generator[Path]:
    """A folder beside `destination`, which gets its name when the block ends without an error, and goes otherwise."""
    _check_destination(destination, force=force)
    stage = destination.parent / f".{destination.name}.{secrets.token_hex(4)}.partial"
    old = stage.with_suffix(".old")
    try:
        stage.mkdir()
        yield stage
        if destination.exists():
            destination.replace(old)
        stage.replace(destination)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ResourceError(f"{destination.parent}: the disk is full; nothing was left behind; free some space") from error
        raise ResourceError(f"{destination}: cannot be written ({error.strerror or error}): check the path and its permissions") from error
    finally:
        if old.exists() and not destination.exists():
            old.replace(destination)
        for folder in (stage, old):
            shutil.rmtree(folder, ignore_errors=True)


def _check_destination(destination: Path, *, force: bool) -> None:
    if not destination.parent.is_dir():
        raise RequestError(f"{destination.parent}: no such folder: create it first, or choose another destination")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise RequestError(f"{destination} is a file, expected the name of a folder to write")
    if any(destination.iterdir()) and not (force and (destination / SITE).is_file()):
        hint = "replace it with --force" if (destination / SITE).is_file() else "it is not a site, so nothing replaces it"
        raise RequestError(f"{destination} already exists; choose another name ({hint})")
