"""Read the identifier at a place, and say how likely chance would have written it there.

The bound on false alarms holds by construction. A place is chosen from the synchronisation points alone. At a place, the score of an
identifier is the sum over its own points of |X| cos(φ − ψ), where X are the image's samples and ψ the phases that the key gives to the
identifier: independent and uniform. For any image, E exp(t |X| cos ψ) = I₀(t |X|) ≤ exp(t² |X|² / 4), so the score in standard deviations
exceeds z with a probability of at most exp(−z² / 2) (Hoeffding). There are 2³² identifiers and at most `PLACES` places in an image.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from .pattern import SYMBOLS, Complex, Pattern, checksum
from .spectrum import Spectrum, Together, heard, loudness, moved

PLACES = 1024
"""Places at which an identifier is read in one image, at most: two sizes, the first searched twice, in at most 4 windows each, 16 places in
a window and 2 more in all windows together, make 216."""
ALARM = 1e-6
"""Probability of a mark in an image that has none, at most."""
THRESHOLD = float(np.sqrt(2 * np.log(2.0**32 * PLACES / ALARM)))
"""Standard deviations: 9.3."""
_LISTED = 12
"""Values of each symbol that are combined."""


def chance(score: float) -> float:
    """The most likely it can be that an image without a mark has this score somewhere."""
    return float(min(1.0, 2.0**32 * PLACES * np.exp(-(score**2) / 2)))


def decode(spectrum: Spectrum | Together, pattern: Pattern, place: NDArray[np.float64]) -> tuple[int, float]:
    """The identifier that fits best at `place` (4,), and its score in standard deviations; 0 and a bound if it stays below `THRESHOLD`."""
    scale, angle, y, x = place
    values: Complex = heard(spectrum, pattern.symbols_at, scale, angle) * moved(pattern.symbols_at, y, x)
    scores = np.matmul(pattern.symbols.real, values.real[..., None]) + np.matmul(pattern.symbols.imag, values.imag[..., None])
    scores = scores[..., 0] / loudness(values.ravel())
    most = float(scores.max(axis=1).sum())
    return (0, most) if most < THRESHOLD else _best_word(scores)


def _best_word(scores: NDArray[np.float32]) -> tuple[int, float]:
    """The best identifier among all combinations of likely values, one symbol after the other left to the parity."""
    listed = np.argsort(-scores, axis=1)[:, :_LISTED]
    best, found = 0.0, 0
    for rest in combinations(range(SYMBOLS), SYMBOLS - 1):
        chosen = dict(zip(rest, np.meshgrid(*listed[list(rest)], indexing="ij"), strict=True))
        parity = np.bitwise_xor.reduce(list(chosen.values()))
        values: list[NDArray[np.int64]] = [chosen[number] if number in chosen else parity for number in range(SYMBOLS)]  # noqa: SIM401
        total = np.sum([scores[number][one] for number, one in enumerate(values)], axis=0)
        word = (values[0] << 30) | (values[1] << 20) | (values[2] << 10) | values[3]
        total = np.where(checksum(word >> 8) == (word & 255), total, -np.inf)
        top = np.unravel_index(np.argmax(total), total.shape)
        if total[top] > best:
            best, found = float(total[top]), int(word[top]) >> 8
    return found, best
