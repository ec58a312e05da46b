"""Pictures that users give, read safely; resizing; and the way to the model's arrays and back.

A file is taken for what its first bytes say, its size is checked before anything is decoded, and whatever the decoder
finds wrong becomes one clear error. What comes out is always RGB, or L for a mask, 8 bits, upright, one frame.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ..models.errors import NumericalError, RequestError, ResourceError
from . import exif

Array = NDArray[np.float32]
How = Literal["resize", "crop", "fill"]
"""How a picture is brought to another shape: stretched, its edges cut off, or its edges drawn out."""

MAX_PIXELS = 1 << 26
"""Pictures of more pixels (8192 × 8192) are refused before they are decoded."""
MAX_BYTES = 256 << 20
"""Files of more bytes are refused before they are read."""

_OPAQUE_BACKGROUND = (255, 255, 255)
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on damaged files."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each EXIF orientation needs to stand upright."""


def read(source: Path | bytes, what: str = "picture") -> Image.Image:
    """The PNG, JPEG or WebP picture in the file or bytes `source`, as RGB; what is transparent becomes white.

    Animations give their first frame, EXIF's rotation is carried out, 16 bits are scaled to 8.

    Raises:
        RequestError: no such file, another format, damaged, or larger than `MAX_PIXELS`; the message begins with `what`.
        ResourceError: memory does not suffice.
    """
    image = _decode(source, what)
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, _OPAQUE_BACKGROUND)
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def read_mask(source: Path | bytes, what: str = "mask") -> Image.Image:
    """A mask, mode L: white where the picture is to be drawn anew. Of a picture with transparent parts, their alpha counts.

    Raises:
        RequestError, ResourceError: as `read`.
    """
    image = _decode(source, what)
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha
    return image.convert("L")


def soften(mask: Image.Image, blur: float = 0.0, *, invert: bool = False) -> Image.Image:
    """`mask` (L), inverted if asked for, its border blurred with a standard deviation of `blur` pixels.

    Raises:
        RequestError: `blur` is negative or beyond 256.
    """
    if not 0 <= blur <= 256:
        raise RequestError(f"mask blur: {blur}, but expected pixels from 0 to 256")
    turned = ImageOps.invert(mask) if invert else mask
    return turned.filter(ImageFilter.GaussianBlur(blur)) if blur else turned


def fit(image: Image.Image, width: int, height: int, how: How = "resize") -> Image.Image:
    """`image` at that size, in pixels: stretched ("resize"), cut to the shape around its middle ("crop"), or whole, with its
    edges drawn out to fill the shape ("fill"). The web UI's three resize modes.

    Raises:
        ResourceError: memory does not suffice.
    """
    if image.size == (width, height):
        return image
    with _refusals(f"a picture of {width} × {height}"):
        if how == "resize":
            return image.resize((width, height), Image.Resampling.LANCZOS)
        if how == "crop":
            shape = width / height
            wide, high = min(image.width, image.height * shape), min(image.height, image.width / shape)
            left, top = (image.width - wide) / 2, (image.height - high) / 2
            box = (left, top, min(left + wide, image.width), min(top + high, image.height))
            return image.resize((width, height), Image.Resampling.LANCZOS, box=box)
        scale = min(width / image.width, height / image.height)
        inner = (max(1, min(width, round(image.width * scale))), max(1, min(height, round(image.height * scale))))
        pixels = np.asarray(image.resize(inner, Image.Resampling.LANCZOS))
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        edges = [(top, height - inner[1] - top), (left, width - inner[0] - left), (0, 0)]
        return Image.fromarray(np.pad(pixels, edges[: pixels.ndim], mode="edge"))


def snap(width: float, height: float, multiple: int = 8) -> tuple[int, int]:
    """The nearest (width, height) in whole multiples of `multiple`, at least one each."""
    return max(1, round(width / multiple)) * multiple, max(1, round(height / multiple)) * multiple


def to_array(image: Image.Image) -> Array:
    """An RGB picture as the VAE takes it: float32 (1, 3, height, width), -1 to 1."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]) / np.float32(127.5) - np.float32(1)


def to_image(array: Array) -> Image.Image:
    """The picture in float32 (1, 3, height, width); what lies outside -1 to 1 is clipped, the rest rounded to the nearest of 256.

    Raises:
        NumericalError: NaN or Inf among the pixels.
    """
    if not np.isfinite(array).all():
        raise NumericalError("NaN or Inf in the decoded picture: expected finite pixels; use a bundle whose VAE decoder is fp32")
    pixels = np.rint((array[0].clip(-1, 1) + 1) * np.float32(127.5)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def read_info(source: Path | bytes, what: str = "picture") -> dict[str, Any]:
    """What stands in a picture's file beside the pixels: PNG's text chunks by their keys, `exif` and `xmp` as bytes.

    Raises:
        RequestError: as `read`, but for pixels, which need not be whole.
    """
    image, _ = _open(source, what)
    texts: dict[str, Any] = {}
    with suppress(*_BROKEN, MemoryError):
        texts = getattr(image, "text", {})  # decodes the pixels, since PNG may have text behind them
    return {str(key): value for key, value in image.info.items()} | texts


def _decode(source: Path | bytes, what: str) -> Image.Image:
    """The first frame, upright, in any 8-bit mode."""
    image, name = _open(source, what)
    with _refusals(name):
        image.load()
        image = _upright(image)
        if image.mode.startswith("I"):  # 16-bit grey; Pillow itself would clip what is above 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
        return image


def _open(source: Path | bytes, what: str) -> tuple[Image.Image, str]:
    """The picture, not yet decoded, and its name for messages."""
    name = what if isinstance(source, bytes) else f"{what} {source}"
    data = source if isinstance(source, bytes) else _bytes(source, name)
    plugin = _plugin(data, name)
    _check_size(*_webp_size(data), name)  # WebP's decoder takes memory as soon as it is made
    with _refusals(name):
        image = plugin(io.BytesIO(data))
    _check_size(*image.size, name)
    return image, name


def _bytes(path: Path, name: str) -> bytes:
    try:
        if not path.is_file():
            raise RequestError(f"{name}: no such file: expected a PNG, JPEG or WebP picture")
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(f"{name}: {path.stat().st_size:,} bytes: expected at most {MAX_BYTES:,}; scale it down")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise RequestError(f"{name}: cannot be read ({error}): expected a PNG, JPEG or WebP picture") from error


def _plugin(data: bytes, name: str) -> Callable[[io.BytesIO], Image.Image]:
    """The decoder for what the first bytes say; called by itself, so that no other format is ever tried."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    raise RequestError(f"{name}: not a PNG, JPEG or WebP picture (it begins with {data[:8]!r}): convert it to PNG")


def _webp_size(data: bytes) -> tuple[int, int]:
    """What the header of a WebP file says (its container specification, VP8 and VP8L); (1, 1) for another file."""
    kind, body = data[12:16], data[20:30]
    if data[:4] != b"RIFF" or len(body) < 10:
        return 1, 1
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise RequestError(f"{name}: {width} × {height} pixels: expected at most {MAX_PIXELS:,} in all (8192 × 8192); scale it down")


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(exif.orientation(image.info.get("exif") or b""))
    return image if turn is None else image.transpose(turn)


@contextmanager
def _refusals(name: str) -> Generator[None]:
    """What goes wrong inside becomes one of our errors."""
    try:
        yield
    except _BROKEN as error:
        raise RequestError(f"{name}: cannot be decoded ({error}): expected a whole PNG, JPEG or WebP file; save it again") from error
    except MemoryError as error:
        raise ResourceError(f"{name}: memory does not suffice to open it: scale it down") from error
