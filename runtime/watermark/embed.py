"""Write a mark: the tile of an identifier, added to the luminance as strongly as each place of the image can hide it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...models.errors import RequestError
from .pattern import DEFAULT_KEY, TILE, Floats, tile_of

SMALLEST = 256
"""Pixels of the shorter side; smaller images hold too little of the mark."""
LARGEST_ID = 2**32 - 1

_FLAT = (1.25, 1.2)
"""Root mean square of the mark on flat areas, in levels of 255: at 256 × 256 pixels, and from 512 × 512."""
_QUIET = (42.4, 43.2)
"""The least PSNR in dB, likewise: large images have more places for the mark."""
_SLOPE, _STRONGEST = 0.3, 4.5
"""Levels per level of local contrast, and at most."""
_BLOCK = 8

Pixels = NDArray[np.uint8]


def embed(rgb: Pixels, identifier: int, key: str = DEFAULT_KEY) -> Pixels:
    """Mark an image. Equal arguments give equal pixels.

    Args:
        rgb: (height, width, 3), at least `SMALLEST` pixels a side.
        identifier: 0 to `LARGEST_ID`.
        key: whoever knows it can read the mark.

    Returns:
        A new array; its peak signal-to-noise ratio is at least 42 dB.

    Raises:
        RequestError: the image is too small, or the identifier out of range.
    """
    height, width = rgb.shape[:2]
    if min(height, width) < SMALLEST or not 0 <= identifier <= LARGEST_ID:
        raise RequestError(f"watermark: {width}×{height} pixels, identifier {identifier}; expected {SMALLEST} pixels a side and 32 bits")
    luma = luminance(rgb)
    mark = np.tile(tile_of(identifier, key), (-(-height // TILE), -(-width // TILE)))[:height, :width]
    size = min(max(((height * width) ** 0.5 - 256) / 256, 0.0), 1.0)
    flat, quiet = (small + (large - small) * size for small, large in (_FLAT, _QUIET))
    strength = np.minimum(flat + _SLOPE * _hiding(luma), np.float32(_STRONGEST))
    limit = 255 / 10 ** (quiet / 20)
    change = _fitted(luma, mark, strength)
    for _ in range(2):
        loud = float(np.sqrt(np.mean(np.square(change))))
        if loud <= limit:
            break
        strength *= np.float32(limit / loud)
        change = _fitted(luma, mark, strength)
    return np.clip(rgb + np.rint(change).astype(np.int16)[..., None], 0, 255).astype(np.uint8)


def luminance(rgb: Pixels) -> Floats:
    """Luminance of (height, width, 3), 0 to 255, with BT.601's weights."""
    return rgb @ np.array([0.299, 0.587, 0.114], np.float32)


def _fitted(luma: Floats, mark: Floats, strength: Floats) -> Floats:
    """The change of each pixel: near white and black, where one half of the mark would be cut off, the other half is doubled."""
    wanted = mark * strength
    span = 2 * strength
    below, above = np.minimum(luma / span, 1), np.minimum((255 - luma) / span, 1)
    return np.where(wanted > 0, above * (2 - below), below * (2 - above)) * wanted


def _hiding(luma: Floats) -> Floats:
    """How much each pixel can hide, in levels: the contrast of the calmest block around it, and a little of its own block's."""
    height, width = luma.shape
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    padded = np.pad(luma, ((0, rows * _BLOCK - height), (0, columns * _BLOCK - width)), mode="edge")
    blocks = padded.reshape(rows, _BLOCK, columns, _BLOCK)
    mean = blocks.mean((1, 3), keepdims=True)
    contrast = np.sqrt(np.square(blocks - mean).mean((1, 3)))
    calm = np.pad(contrast, 1, mode="edge")
    calm = np.minimum(np.minimum(calm[:-2], calm[1:-1]), calm[2:])
    calm = np.minimum(np.minimum(calm[:, :-2], calm[:, 1:-1]), calm[:, 2:])
    calm = np.maximum(calm, np.minimum(contrast, 6) * 0.5)
    whole = Image.fromarray(calm).resize((columns * _BLOCK, rows * _BLOCK), Image.Resampling.BILINEAR)
    return np.asarray(whole)[:height, :width]
