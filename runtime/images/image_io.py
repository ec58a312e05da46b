"""Read user images safely, resize them, and convert them to the model's arrays and back.

The first bytes of a file determine its format, its size is checked before decoding, and every decoder failure becomes one clear error. The
result is always a single upright frame with 8 bits per channel, in RGB, or L for a mask.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ...models.errors import BundleError, NumericalError, RequestError, ResourceError
from ...models.formats.small_file import read_bytes
from . import exif, png

Array = NDArray[np.float32]
How = Literal["stretch", "crop", "pad"]
"""How to change an image's aspect ratio: stretch it, crop it, or extend its edge pixels."""

MAX_PIXELS = 1 << 26
"""Larger images (8192 × 8192) are refused before decoding."""
MAX_BYTES = 256 << 20
"""Larger files are refused before reading."""

_OPAQUE_BACKGROUND = (255, 255, 255)
_BAND = 1 << 20
"""Pixels of a band of rows."""
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
    Warning,
    struct.error,
    zlib.error,
)
"""The exceptions that Pillow's decoders raise for damaged files; their warnings too, where a host turns those into errors."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transformation that makes each EXIF orientation upright."""


def read(source: Path | bytes, what: str = "image") -> Image.Image:
    """Read a PNG, JPEG or WebP image from a file or bytes, as RGB; transparent parts become white.

    Uses the first frame of an animation, applies the EXIF orientation, and scales 16 bits to 8.

    Raises:
        RequestError: missing file, another format, damaged, or larger than `MAX_PIXELS`; the message begins with `what`.
        ResourceError: not enough memory.
    """
    return as_image(_decode(source, what), what)


def as_image(image: Image.Image, what: str = "image") -> Image.Image:
    """`image` as RGB of 8 bits; transparent parts become white.

    Raises:
        RequestError: no pixels, too many, floats, or a file that cannot be decoded; the message begins with `what`.
        ResourceError: not enough memory.
    """
    image = _eight_bits(image, what)
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        return _on_background(image)
    return image.convert("RGB")


def _on_background(image: Image.Image) -> Image.Image:
    """`image` on white as RGB; in bands of rows, so that a large image takes little more memory than the result."""
    made = Image.new("RGB", image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        background = Image.new("RGBA", band.size, _OPAQUE_BACKGROUND)
        made.paste(Image.alpha_composite(background, band).convert("RGB"), (0, top))
    return made


def _eight_bits(image: Image.Image, what: str) -> Image.Image:
    """`image` with at most 8 bits per channel."""
    if not image.width or not image.height or image.mode == "F":
        raise RequestError(f"{what}: {image.width} × {image.height} pixels of mode {image.mode}, expected an image of 8 or 16 bits")
    _check_size(*image.size, what)
    with _refusals(what):
        image.load()
        if image.mode in {"P", "PA"} and image.palette is None:
            raise ValueError("it has no palette")
        if image.mode.startswith("I"):  # 16-bit grey; Pillow itself would clip values above 255
            return Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
        return image


def read_mask(source: Path | bytes, what: str = "mask") -> Image.Image:
    """Read a mask as mode L: white where the image is regenerated.

    If the image has transparent parts, they decide: of strokes in one colour on a transparent ground, the strokes are regenerated (the web
    UIs save masks so); of an image with erased parts, those are (as OpenAI's API, ComfyUI and InvokeAI have it). `how_read` tells which.

    Raises:
        RequestError, ResourceError: as in `read`.
    """
    return as_mask(_decode(source, what), what)


def as_mask(image: Image.Image, what: str = "mask") -> Image.Image:
    """`image` as a mask of mode L, read as `read_mask` reads a file.

    Raises:
        RequestError, ResourceError: as in `as_image`.
    """
    image = _eight_bits(image, what)
    alpha = _alpha(image)
    if alpha is None:
        return _grey(image)
    strokes = _has_one_colour(image.convert("RGBA"))
    mask = alpha if strokes else ImageOps.invert(alpha)
    mask.info = {_HOW: "the strokes on its transparent ground are regenerated" if strokes else "its transparent parts are regenerated"}
    return mask


_HOW = (-1, -1)
"""A key of `Image.info` that no file can have, whose keys are texts."""


def how_read(mask: Image.Image) -> str:
    """Return which parts of a mask from `read_mask` are regenerated, if its transparency decided that; otherwise empty."""
    return str(mask.info.get(_HOW, ""))


def read_holes(source: Path | bytes, what: str = "mask") -> Image.Image:
    """Read a mask as mode L: white where it is transparent, or black if nothing is.

    Raises:
        RequestError, ResourceError: as in `read`.
    """
    image = _decode(source, what)
    alpha = _alpha(image)
    return ImageOps.invert(_grey(image) if alpha is None else alpha)


def _alpha(image: Image.Image) -> Image.Image | None:
    """The alpha channel of `image`, if anything is transparent."""
    if image.mode not in {"RGBA", "LA", "PA", "La", "RGBa"} and "transparency" not in image.info:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _grey(image: Image.Image) -> Image.Image:
    """`image` in mode L. Pillow warns of a palette with transparency unless the image becomes RGBA first."""
    return (image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image).convert("L")


def _has_one_colour(image: Image.Image) -> bool:
    """Whether the opaque parts of `image` (RGBA) have one colour, up to compression."""
    opaque = image.getchannel("A").point([0] * 128 + [255] * 128)
    for channel in "RGB":
        found = np.flatnonzero(image.getchannel(channel).histogram(opaque))
        if found.size and found[-1] - found[0] > 32:
            return False
    return True


def soften(mask: Image.Image, blur: float = 0.0, *, invert: bool = False) -> Image.Image:
    """Blur `mask` (L) with a standard deviation of `blur` pixels, after inverting it if `invert` is set.

    Raises:
        RequestError: `blur` is negative or above 256.
    """
    if not 0 <= blur <= 256:
        raise RequestError(f"mask blur: {blur}, expected pixels from 0 to 256")
    turned = ImageOps.invert(mask) if invert else mask
    return turned.filter(ImageFilter.GaussianBlur(blur)) if blur else turned


def fit(image: Image.Image, width: int, height: int, how: How = "stretch") -> Image.Image:
    """Resize `image` to that size in pixels: stretched ("stretch"), with a centred crop ("crop"), or whole, with its edge pixels extended
    to fill the size ("pad"). These are the web UI's three resize modes.

    Raises:
        ResourceError: not enough memory.
    """
    if image.size == (width, height):
        return image
    with _refusals(f"an image of {width} × {height}"):
        if how == "stretch":
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
    """Return the nearest (width, height) in whole multiples of `multiple`, at least one each."""
    return max(1, round(width / multiple)) * multiple, max(1, round(height / multiple)) * multiple


def to_array(image: Image.Image) -> Array:
    """Convert an RGB image to the VAE's input: float32 (1, 3, height, width), -1 to 1."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]) / np.float32(127.5) - np.float32(1)


def to_image(array: Array) -> Image.Image:
    """Convert float32 (1, 3, height, width) to an image: values are clipped to -1 to 1 and rounded to 8 bits.

    Raises:
        NumericalError: a pixel is NaN or Inf.
    """
    if not np.isfinite(array).all():
        raise NumericalError("NaN or Inf in the decoded image: expected finite pixels; use a bundle whose VAE decoder is fp32")
    pixels = np.rint((array[0].clip(-1, 1) + 1) * np.float32(127.5)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


class Info(NamedTuple):
    """The metadata of an image file."""

    texts: Mapping[str, str]
    """PNG's text chunks by keyword; empty for other formats."""
    exif: bytes
    xmp: bytes


def read_info(source: Path | bytes, what: str = "image") -> Info:
    """Read the metadata of an image file. Its pixels are not decoded.

    Raises:
        RequestError: as in `read`, except that the pixels may be truncated.
    """
    image, _, data = _open(source, what)
    if data.startswith(png.SIGNATURE):
        texts = png.texts(data)
        return Info(texts, png.exif_of(data), texts.get("XML:com.adobe.xmp", "").encode(errors="replace"))
    return Info({}, *(value if isinstance(value := image.info.get(name), bytes) else b"" for name in ("exif", "xmp")))


def _decode(source: Path | bytes, what: str) -> Image.Image:
    """Return the first frame, upright, in any mode of 8 bits per channel."""
    image, name, _ = _open(source, what)
    with _refusals(name):
        image.load()
        return _eight_bits(_upright(image), name)


def _open(source: Path | bytes, what: str) -> tuple[Image.Image, str, bytes]:
    """Return the image before decoding, its name for messages, and the file's bytes."""
    name = what if isinstance(source, bytes) else f"{what} {source}"
    data = source if isinstance(source, bytes) else _bytes(source, name)
    plugin = _plugin(data, name)
    _check_jpeg(data, name)
    _check_size(*_webp_size(data), name)  # WebP's decoder allocates memory on creation
    with _refusals(name):
        image = plugin(io.BytesIO(png.still(data) if data.startswith(png.SIGNATURE) else data))
    _check_size(*image.size, name)
    return image, name, data


def file_bytes(path: Path, what: str = "image") -> bytes:
    """Return the bytes of an image file.

    Raises:
        RequestError: missing, not a regular file, or larger than `MAX_BYTES`; the message begins with `what`.
    """
    return _bytes(path, f"{what} {path}")


def _bytes(path: Path, name: str) -> bytes:
    try:
        return read_bytes(path, MAX_BYTES, "a PNG, JPEG or WebP image")
    except BundleError as error:
        raise RequestError(f"{name.removesuffix(str(path))}{error}") from error.__cause__


def _plugin(data: bytes, name: str) -> Callable[[io.BytesIO], Image.Image]:
    """Return the decoder for the format of the first bytes. Calling it directly keeps Pillow from trying other formats."""
    if data.startswith(png.SIGNATURE):
        return PngImagePlugin.PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    raise RequestError(f"{name}: not a PNG, JPEG or WebP image (it begins with {data[:8]!r}); convert it to PNG")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the size in a WebP header (container specification, VP8 and VP8L); (1, 1) for another format."""
    kind, body = data[12:16], data[20:30]
    if data[:4] != b"RIFF" or len(body) < 10:
        return 1, 1
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


MAX_SCANS, MAX_SEGMENTS = 100, 1000
"""Of a JPEG. Progressive files have about ten scans and a handful of EXIF segments; a decoder works through the whole image for each
scan, and copies all EXIF data for each segment."""


def _check_jpeg(data: bytes, name: str) -> None:
    for marker, limit, what in ((b"\xff\xda", MAX_SCANS, "scans"), (b"\xff\xe1", MAX_SEGMENTS, "EXIF segments")):
        if data.startswith(b"\xff\xd8\xff") and data.count(marker) > limit:
            raise RequestError(f"{name}: a JPEG of {data.count(marker):,} {what}, expected at most {limit}; save it again")


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise RequestError(f"{name}: {width} × {height} pixels, expected at most {MAX_PIXELS:,} in total (8192 × 8192); scale it down")


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(exif.orientation(image.info.get("exif") or b""))
    return image if turn is None else image.transpose(turn)


@contextmanager
def _refusals(name: str) -> Generator[None]:
    """Map exceptions of the decoder to the errors of this package."""
    try:
        yield
    except _BROKEN as error:
        raise RequestError(f"{name}: cannot be decoded ({error}); expected a complete PNG, JPEG or WebP file; save it again") from error
    except MemoryError as error:
        raise ResourceError(f"{name}: not enough memory to open it; scale it down") from error
