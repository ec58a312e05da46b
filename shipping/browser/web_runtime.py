"""ONNX Runtime Web, from npm: one pinned version, every file of which is checked.

Its licence is MIT; the package has no copy of the text, so the site gets one.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...models.errors import RequestError, ResourceError
from ...models.formats.small_file import read_bytes

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
REGISTRY = "https://registry.npmjs.org"
PATH = f"onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package, as the registry's metadata state it (`npm view onnxruntime-web@VERSION dist.integrity`)."""
MAX_PACKAGE = 64 << 20
MAX_FILE = 64 << 20


class Part(NamedTuple):
    """A file of the package."""

    name: str
    """In the package's folder `dist`."""
    written: str
    """In the site's folder `runtime`. Every server knows the type of *.js; some do not know *.mjs."""
    sha256: str


WASM = (
    Part("ort.wasm.bundle.min.mjs", "ort.wasm.js", "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
    Part("ort-wasm-simd-threaded.wasm", "ort.wasm", "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
)
WEBGPU = (
    Part("ort.webgpu.bundle.min.mjs", "ort.webgpu.js", "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2"),
    Part("ort-wasm-simd-threaded.asyncify.wasm", "ort.webgpu.wasm", "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"),
)
LICENCE = """MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
_OFFLINE = f"get it with `npm pack {PACKAGE}` where there is a network, and name the file with --runtime"


def runtime_files(parts: tuple[Part, ...], given: Path | None, advance: Callable[[str, float], None]) -> dict[str, bytes]:
    """The bytes of `parts` by the names they are written under, from `given` (the package's folder or .tgz) or else from npm.

    Raises:
        RequestError: `given` does not hold this version; or the package cannot be had, and what to do.
    """
    if given is not None and given.is_dir():
        found = {part: _in_folder(given, part) for part in parts}
    else:
        package = _download(advance) if given is None else read_bytes(given, MAX_PACKAGE, f"{PACKAGE} as .tgz")
        found = _unpacked(package, parts, str(given or PACKAGE))
    for part, data in found.items():
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise RequestError(f"{given or PACKAGE}: {part.name} is not that of {PACKAGE}; {_OFFLINE}")
    return {part.written: data for part, data in found.items()}


def _in_folder(folder: Path, part: Part) -> bytes:
    for place in (folder, folder / "dist", folder / "package" / "dist", folder / "node_modules" / "onnxruntime-web" / "dist"):
        if (place / part.name).is_file():
            return read_bytes(place / part.name, MAX_FILE, part.name)
    raise RequestError(f"{folder}: {part.name} is not in this folder; expected the npm package {PACKAGE}: {_OFFLINE}")


def _unpacked(package: bytes, parts: tuple[Part, ...], where: str) -> dict[Part, bytes]:
    wanted = {f"package/dist/{part.name}": part for part in parts}
    found: dict[Part, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
            for member in archive:
                if member.name in wanted and member.isfile() and member.size <= MAX_FILE:
                    content = archive.extractfile(member)
                    found[wanted[member.name]] = b"" if content is None else content.read()
                    if len(found) == len(wanted):
                        break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise RequestError(f"{where}: not a package of npm ({error}); {_OFFLINE}") from error
    if missing := [part.name for part in parts if part not in found]:
        raise RequestError(f"{where}: {missing[0]} is not in it; expected {PACKAGE}: {_OFFLINE}")
    return found


def _download(advance: Callable[[str, float], None]) -> bytes:
    """The package, from npm's registry or the one that npm is set to (NPM_CONFIG_REGISTRY)."""
    from urllib.request import urlopen

    registry = os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY
    address = f"{registry.rstrip('/')}/{PATH}"
    if not address.startswith(("https://", "http://127.0.0.1", "http://localhost")):
        raise RequestError(f"{registry}: expected the address of an npm registry over https; {_OFFLINE}")
    data = bytearray()
    try:
        with urlopen(address, timeout=60) as answer:  # noqa: S310  # the scheme is looked at above
            size = int(answer.headers.get("Content-Length") or MAX_PACKAGE)
            while piece := answer.read(1 << 20):
                data += piece
                if len(data) > MAX_PACKAGE:
                    raise RequestError(f"{address}: more than {MAX_PACKAGE:,} bytes, expected {PACKAGE}; {_OFFLINE}")
                advance(f"downloading {PACKAGE}", len(data) / max(size, 1))
    except (OSError, ValueError) as error:
        raise ResourceError(f"{address}: cannot be downloaded ({error}); {_OFFLINE}") from error
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != SHA512:
        raise RequestError(f"{address}: its SHA-512 is not that of {PACKAGE}; {_OFFLINE}")
    return bytes(data)
