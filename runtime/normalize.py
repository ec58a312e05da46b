"""What Python callers pass, as plain types: images from paths, PIL images and arrays; LoRAs from paths; text and lists checked.

Wrong types end here, with the name of the field, before anything runs.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from ..models.errors import RequestError
from .images import image_io
from .names import key_of, look_up
from .request import Request, check_numbers, shown, specs

MAX_FILES = 64
"""LoRAs, and textual inversions, of one request."""


@dataclass(frozen=True)
class NormalizedRequest(Request):
    """A request whose fields have one type each."""

    negative: str = ""
    init: Image.Image | None = None
    mask: Image.Image | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    fit: image_io.How = "crop"
    lora_folder: Path | None = None
    embeddings: tuple[Path, ...] = ()


def normalize(request: Request) -> NormalizedRequest:
    """`request` with plain types and numbers within bounds.

    Raises:
        RequestError: a wrong type or a value out of bounds; the message names the field.
    """
    if isinstance(request, NormalizedRequest):
        return request
    if not isinstance(cast("object", request), Request):
        raise RequestError(f"request: {shown(request)} is of type {type(request).__name__}, expected a Request, such as Request('a fox')")
    found: dict[str, Any] = {field.name: getattr(request, field.name) for field in dataclasses.fields(Request)}
    found |= {
        name: None for name in ("seed", "variation_seed") if isinstance(found[name], numbers.Integral) and found[name] == -1
    }  # as the web UIs write a random seed
    found["negative"] = "" if request.negative is None else request.negative
    for name, (annotation, _, _) in specs().items():
        if annotation in {"str", "str | None"}:
            _check_type(name, found[name], (str,) if name == "negative" or annotation == "str" else (str, type(None)), "text")
    found["only_masked"] = yes_or_no("only_masked", request.only_masked)
    found["init"] = None if request.init is None else _image("init", request.init)
    found["mask"] = None if request.mask is None else _image("mask", request.mask)
    found["loras"] = _loras(request.loras)
    found["lora_folder"] = None if request.lora_folder is None else _folder("lora_folder", request.lora_folder)
    found["embeddings"] = tuple(path_of("embeddings", one) for one in _several("embeddings", request.embeddings))
    for name in ("timesteps", "sigmas"):
        found[name] = _numbers(name, found[name])
    for name, (_, _, spec) in specs().items():
        if spec.choices:
            found[name] = look_up(name, found[name], {key_of(choice): choice for choice in spec.choices}, spec.choices)
    options: Any = found["sampler_options"]
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in cast("Mapping[Any, Any]", options)):
        raise RequestError(f"sampler_options: {shown(cast('object', options))}, expected names and values, such as {{'eta': 0.5}}")
    return cast("NormalizedRequest", check_numbers(NormalizedRequest(**found)))


def _check_type(name: str, value: object, types: tuple[type, ...], expected: str) -> None:
    if not isinstance(value, types):
        raise RequestError(f"{name}: {shown(value)} is of type {type(value).__name__}, expected {expected}")


def _image(name: str, value: object) -> Image.Image:
    """A PIL image, the image in a file, or the image of an array: (height, width), with 1, 3 or 4 channels, uint8, or floats 0 to 1."""
    if isinstance(value, Image.Image):
        return image_io.as_mask(value) if name == "mask" else image_io.as_image(value, name)
    if _is_path(value):
        path = path_of(name, value)
        return image_io.read_mask(path) if name == "mask" else image_io.read(path, "init image")
    if not isinstance(value, np.ndarray):
        raise RequestError(f"{name}: of type {type(value).__name__}, expected a path, a PIL image or an array")
    given: Any = cast("Any", value)
    image = _from_array(name, given)
    return image_io.as_mask(image) if name == "mask" else image_io.as_image(image, name)


def _from_array(name: str, given: Any) -> Image.Image:
    pixels = given
    if pixels.dtype == np.bool_ or (pixels.dtype.kind == "f" and np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        pixels = np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3} or (pixels.ndim == 3 and pixels.shape[2] not in {3, 4}) or not pixels.size:
        raise RequestError(
            f"{name}: an array of {given.dtype} and shape {given.shape}, expected (height, width) with 1, 3 or 4 channels of uint8, "
            f"or of floats from 0 to 1"
        )
    if pixels.shape[0] * pixels.shape[1] > image_io.MAX_PIXELS:
        raise RequestError(f"{name}: {pixels.shape[1]} × {pixels.shape[0]} pixels, expected at most {image_io.MAX_PIXELS:,}; scale it down")
    return Image.fromarray(pixels)


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike))


def path_of(name: str, value: object) -> Path:
    """`value`, given as `name`, as a path.

    Raises:
        RequestError: another type, or an empty text.
    """
    path = cast("object", os.fspath(cast("Any", value))) if _is_path(value) else None
    if not isinstance(path, str) or not path:
        raise RequestError(f"{name}: {shown(value)} is of type {type(value).__name__}, expected a path")
    return Path(path)


def yes_or_no(name: str, value: object) -> bool:
    """`value`, given as `name`, if it is true or false.

    Raises:
        RequestError: another type.
    """
    _check_type(name, value, (bool, np.bool_), "true or false")
    return bool(value)


def _folder(name: str, value: object) -> Path:
    path = path_of(name, value)
    if not os.path.isdir(path):  # noqa: PTH112  # never raises
        what = "not a folder" if os.path.lexists(path) else "no such folder"
        raise RequestError(f"{name}: {shown(str(path))}, {what}; expected an existing one")
    return path


def _several(name: str, value: object) -> list[Any]:
    """One path or several as a list."""
    if isinstance(value, (str, os.PathLike)):
        return [value]
    if not isinstance(value, Sequence):
        raise RequestError(f"{name}: {shown(value)} is of type {type(value).__name__}, expected a path or a list of paths")
    found = list(cast("Sequence[Any]", value))
    if len(found) > MAX_FILES:
        raise RequestError(f"{name}: {len(found):,} files, expected at most {MAX_FILES}")
    return found


def _loras(value: object) -> tuple[tuple[Path, float], ...]:
    """A path, (path, weight), or a list of either."""
    given = cast("Any", value)
    if isinstance(value, tuple) and len(given) == 2 and isinstance(given[1], numbers.Real) and not isinstance(given[1], bool):
        given = [given]
    pairs: list[tuple[Path, float]] = []
    for one in _several("loras", given):
        if isinstance(one, (tuple, list)):
            pair = cast("Sequence[Any]", one)
            if len(pair) != 2:
                raise RequestError(f"loras: {shown(pair)}, expected a path, or a path and a weight")
            pairs.append((path_of("loras", pair[0]), pair[1]))
        else:
            pairs.append((path_of("loras", one), 1.0))
    return tuple(pairs)


def _numbers(name: str, value: object) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in cast("Sequence[Any]", value))
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"{name}: {shown(value)}, expected a list of numbers") from error
