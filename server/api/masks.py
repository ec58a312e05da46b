"""Masks as other APIs mean them, turned into ours: white where the image is generated anew."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from ...runtime.images import image_io

FILL_SIDE = 1024
"""Pixels of the longer side at which colours are spread; what they are spread over has no detail to lose."""
_RADII = (4, 16, 64, 256)
"""Blurs in pixels, from the colours next to the mask to those of the whole image."""


def inverted(mask: bytes) -> bytes:
    """The mask with black and white exchanged."""
    return png(ImageOps.invert(image_io.read_mask(mask)))


def filled(init: bytes, mask: bytes) -> bytes:
    """The image with the colours around the mask spread over what the mask covers (A1111's "fill").

    Raises:
        RequestError, ResourceError: an image cannot be read.
    """
    image = image_io.read(init, "init image")
    cover = image_io.read_mask(mask)
    known = Image.eval(cover if cover.size == image.size else cover.resize(image.size), lambda value: 0 if value >= 128 else 255)
    scale = min(1.0, FILL_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    weight = np.asarray(known.resize(size, Image.Resampling.BOX), np.float32)[..., None] / np.float32(255)
    seen = Image.composite(image, Image.new("RGB", image.size), known).resize(size, Image.Resampling.BOX)
    fill = _spread(np.asarray(seen, np.float32), weight)
    return png(Image.composite(image, fill.resize(image.size, Image.Resampling.BILINEAR), known))


def _spread(seen: NDArray[np.float32], weight: NDArray[np.float32]) -> Image.Image:
    """Colours for the whole image: `seen` is (height, width, 3) times `weight`, 1 where the colour is known, to 0."""
    source = Image.fromarray(seen.astype(np.uint8))
    known = Image.fromarray((weight[..., 0] * 255).astype(np.uint8))
    found, covered = seen / np.maximum(weight, 1e-3), weight > 0.5
    for radius in _RADII:
        blur = ImageFilter.GaussianBlur(radius)
        near = np.asarray(known.filter(blur), np.float32)[..., None] / np.float32(255)
        colours = np.asarray(source.filter(blur), np.float32)
        here = ~covered & (near > 0.05)
        found = np.where(here, colours / np.maximum(near, 1e-3), found)
        covered |= here
    return Image.fromarray(found.clip(0, 255).astype(np.uint8))


def of_transparency(data: bytes) -> bytes:
    """The mask that the transparent parts of a PNG mean (OpenAI's edits)."""
    return png(image_io.read_holes(data))


def png(image: Image.Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
