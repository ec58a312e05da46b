"""JSON objects as requests: fields by their names, images by path or base64, paths inside allowed folders only."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ...runtime.images import image_io
from ...runtime.names import unknown
from ...runtime.request import Request, shown, specs
from .error_codes import Refusal


@dataclass(frozen=True)
class Folders:
    """The folders in which a process reads files for its client."""

    roots: tuple[Path, ...]

    def inside(self, field: str, text: object) -> Path:
        """The path `text`, links followed, if it is in one of the folders.

        Raises:
            Refusal: no text, or outside the folders.
        """
        if not isinstance(text, str) or not text or "\0" in text:
            raise Refusal("invalid_request", f"{field}: {shown(text)}, expected a path", field)
        try:
            path = Path(text).resolve()
        except (OSError, RuntimeError) as error:  # links in a circle
            raise Refusal("invalid_request", f"{field}: {shown(text)} is not a usable path ({error})", field) from error
        if not any(path.is_relative_to(root) for root in self.roots):
            allowed = ", ".join(map(str, self.roots)) or "none"
            message = (
                f"{field}: {shown(text)} is outside the allowed folders ({allowed}); copy the file there, or start with --allow FOLDER"
            )
            raise Refusal("forbidden", message, field)
        return path


def request_of(fields: object, folders: Folders) -> Request:
    """The request of a JSON object.

    `init` and `mask` are {"path": …} or {"base64": …}; `loras` is a list of {"path": …, "weight": …}; the other fields are as in `Request`.

    Raises:
        Refusal: an unknown field, a path outside `folders`, or damaged base64.
        RequestError: an image cannot be read.
    """
    if not isinstance(fields, dict):
        raise Refusal("invalid_request", f"request: {shown(fields)}, expected an object with a prompt and other fields", "request")
    given = dict(cast("dict[str, Any]", fields))
    for name in given:
        if name not in specs():
            raise Refusal("invalid_request", str(unknown("field", name, specs())), name)
    if not isinstance(given.get("prompt"), str):
        raise Refusal("invalid_request", f"prompt: {shown(given.get('prompt'))}, expected text", "prompt")
    for name, convert in _CONVERTED.items():
        if given.get(name) is not None:
            given[name] = convert(name, given[name], folders)
    return Request(**given)


def parent_of(fields: object, folders: Folders) -> bytes | None:
    """The bytes of the image that a checked request starts from; None if there is none.

    Raises:
        Refusal, RequestError: as in `request_of`.
    """
    entry = cast("dict[str, Any]", fields).get("init") if isinstance(fields, dict) else None
    if not isinstance(entry, dict):
        return None
    found = cast("dict[str, Any]", entry)
    if "path" in found:
        return image_io.file_bytes(folders.inside("init", found["path"]), "init")
    return base64.b64decode(str(found.get("base64")))


def _image(name: str, value: object, folders: Folders) -> Image.Image:
    entry = cast("dict[str, Any]", value) if isinstance(value, dict) and len(cast("dict[str, Any]", value)) == 1 else {}
    read = image_io.read_mask if name == "mask" else image_io.read
    if "path" in entry:
        return read(folders.inside(name, entry["path"]), name)
    if isinstance(entry.get("base64"), str):
        try:
            return read(base64.b64decode(entry["base64"], validate=True), name)
        except binascii.Error as error:
            message = f"{name}: damaged base64 ({error}); expected the bytes of a PNG, JPEG or WebP file, without a data: prefix"
            raise Refusal("invalid_request", message, name) from error
    raise Refusal("invalid_request", f'{name}: {shown(cast("object", value))}, expected {{"path": …}} or {{"base64": …}}', name)


def _list(name: str, value: object) -> Sequence[Any]:
    if not isinstance(value, list):
        raise Refusal("invalid_request", f"{name}: {shown(value)}, expected a list", name)
    return cast("list[Any]", value)


def _loras(name: str, value: object, folders: Folders) -> tuple[tuple[Path, float], ...]:
    found: list[tuple[Path, float]] = []
    for one in _list(name, value):
        entry = cast("dict[str, Any]", one) if isinstance(one, dict) else {}
        if not entry.keys() <= {"path", "weight"} or "path" not in entry:
            raise Refusal("invalid_request", f'{name}: {shown(cast("object", one))}, expected {{"path": …, "weight": …}}', name)
        found.append((folders.inside(name, entry["path"]), entry.get("weight", 1.0)))
    return tuple(found)


def _paths(name: str, value: object, folders: Folders) -> tuple[Path, ...]:
    return tuple(folders.inside(name, one) for one in _list(name, value))


def _path(name: str, value: object, folders: Folders) -> Path:
    return folders.inside(name, value)


_CONVERTED: Mapping[str, Callable[[str, object, Folders], Any]] = {
    "init": _image,
    "mask": _image,
    "loras": _loras,
    "embeddings": _paths,
    "lora_folder": _path,
}
