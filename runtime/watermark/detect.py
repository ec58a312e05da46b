"""Find a mark in an image that may have been scaled, cropped, turned a little and compressed since it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from .decode import THRESHOLD, chance, decode
from .embed import Pixels, luminance
from .pattern import DEFAULT_KEY, Floats, Pattern, pattern_of
from .search import Place, Places, hypotheses, refine, search
from .spectrum import Spectrum, Together, residual

SCALES = (0.44, 2.3)
"""How much smaller or larger an image may have become."""
_HALVED = 1.25
"""Images enlarged by more are searched at half their size."""
_WINDOW, _SEARCHED = 640, 4
"""Pixels of a window, at most; windows that are searched."""
_MOST = 3072
"""Of larger images, the middle is read."""
_LEAST = 96
"""Pixels of the shorter side; smaller images are not searched."""
_LIKELY = 4.5
"""Standard deviations of the synchronisation, from which an identifier is read."""


@dataclass(frozen=True)
class Found:
    """A mark in an image.

    Attributes:
        identifier: the 32 bits.
        score: how well it fits, in standard deviations.
        chance: the probability that an image without a mark has this score, at most.
        scale: size of the image now, as a multiple of what it was when it was marked.
        angle: how far it was turned since, in degrees.
    """

    identifier: int
    score: float
    chance: float
    scale: float
    angle: float


def detect(rgb: Pixels, key: str = DEFAULT_KEY) -> Found | None:
    """Find the mark of `key`.

    Args:
        rgb: (height, width, 3).
        key: the key that the mark was written with.

    Returns:
        The mark, or None; in an image without a mark, anything is found with a probability below one in a million.
    """
    height, width = rgb.shape[:2]
    if min(height, width) < _LEAST:
        return None
    pattern = pattern_of(key)
    top, left = max(0, height - _MOST) // 2, max(0, width - _MOST) // 2
    luma = luminance(rgb[top : top + _MOST, left : left + _MOST])
    whole = _windows(luma)
    return (
        _look(whole, pattern, 1.0, (1.0, 1.0))
        or _look(whole, pattern, 1.0, (SCALES[0], _HALVED))
        or _look(_windows(np.asarray(Image.fromarray(luma).reduce(2))), pattern, 2.0, (_HALVED, SCALES[1]))
    )


def _look(windows: list[Spectrum], pattern: Pattern, smaller: float, scales: tuple[float, float]) -> Found | None:
    """Search `windows` of an image that was made `smaller` for marks at `scales` of the image; if both are equal, for unturned ones."""
    low, high = scales
    for number, window in enumerate(windows[:_SEARCHED]):
        geometries = np.array([[low, 0.0]]) if low == high else hypotheses(window.size, low / smaller, high / smaller)
        places, fitting = refine(window, pattern, search(window, pattern, geometries))
        order = np.argsort(-fitting)
        likely = places[order[fitting[order] > _LIKELY]]
        for identifier, score, place in _read(windows, number, pattern, likely):
            if score > THRESHOLD:
                return Found(identifier, score, chance(score), float(place[0]) * smaller, float(np.rad2deg(place[1])))
    return None


def _read(windows: list[Spectrum], number: int, pattern: Pattern, places: Places) -> Iterator[tuple[int, float, Place]]:
    """Read at each of `places` of one window; then at the best two of them in all windows together, for the marks of large, flat images."""
    for place in places:
        yield (*decode(windows[number], pattern, place), place)
    if len(windows) > 1 and len(places):
        together = Together([windows[number], *windows[:number], *windows[number + 1 :]])
        for place in refine(together, pattern, refine(together, pattern, places[:2])[0])[0]:
            yield (*decode(together, pattern, place), place)


def _windows(luma: Floats) -> list[Spectrum]:
    """Windows that cover `luma`, those in the middle first; none if it is too small."""
    height, width = luma.shape
    if min(height, width) < _LEAST:
        return []
    heard = residual(luma)
    boxes = [(*rows, *columns) for rows in _cuts(height) for columns in _cuts(width)]
    boxes.sort(key=lambda box: abs(box[0] + box[1] - height) + abs(box[2] + box[3] - width))
    return [Spectrum(heard[a:b, c:d], (a + (b - a) // 2, c + (d - c) // 2)) for a, b, c, d in boxes]


def _cuts(length: int) -> list[tuple[int, int]]:
    """`length` in equal parts of at most `_WINDOW`, with start and end."""
    parts = -(-length // _WINDOW)
    return list(pairwise(length * number // parts for number in range(parts + 1)))
