"""Where a lattice may lie: scale, angle and shift, from the points that serve synchronisation alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pattern import TILE, Pattern
from .spectrum import Spectrum, Together, heard, loudness, moved

Places = NDArray[np.float64]
"""(places, 4): scale, angle in radians, and the shift of the tile's origin (y, x) in pixels of the tile."""
Place = NDArray[np.float64]
"""(4,), one of them."""
KEPT = 16
"""Places that a search returns."""
TURN = 0.0297
"""The largest angle that is searched, in radians: 1.7°."""
_GRID = 64
"""Shifts a side."""
_BATCH = 32
_STEPS = np.array([[0, 0, 0, 0], *np.eye(4), *-np.eye(4)])


def hypotheses(size: int, low: float, high: float) -> NDArray[np.float64]:
    """Scales from `low` to `high` with angles, (hypotheses, 2), near enough to each other for a window of `size` pixels."""
    step = 4.0 / size
    scales = low * np.exp(np.arange(int(np.ceil(np.log(high / low) / step)) + 1) * step)
    turns = int(TURN / step + 0.5)
    angles = np.arange(-turns, turns + 1) * step
    return np.column_stack([np.repeat(scales, len(angles)), np.tile(angles, len(scales))]).astype(np.float64)


def search(spectrum: Spectrum, pattern: Pattern, geometries: NDArray[np.float64]) -> Places:
    """The most likely places, best first; at most one for each of `geometries` (hypotheses, 2)."""
    found = np.concatenate([_shifts(spectrum, pattern, geometries[at : at + _BATCH]) for at in range(0, len(geometries), _BATCH)])
    return found[np.argsort(-found[:, 0])[:KEPT], 1:]


def _shifts(spectrum: Spectrum, pattern: Pattern, geometries: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best shift of each geometry: (geometries, 5), score and place. All shifts are compared at once by a Fourier transform."""
    values = heard(spectrum, pattern.sync_at[None], geometries[:, :1], geometries[:, 1:])
    grid = np.zeros((len(values), _GRID, _GRID // 2 + 1), np.complex64)
    grid[:, pattern.sync_at[:, 1] % _GRID, pattern.sync_at[:, 0]] = values * pattern.sync.conj()
    scores = np.fft.irfft2(grid, s=(_GRID, _GRID), axes=(1, 2), norm="forward").reshape(len(values), -1)
    best = np.argmax(scores, axis=1)
    score = scores[np.arange(len(best)), best] / (2 * loudness(values))
    x, y = np.divmod(best, _GRID)
    return np.column_stack([score, geometries, y * (TILE / _GRID), x * (TILE / _GRID)])


def scores_of(spectrum: Spectrum | Together, pattern: Pattern, places: Places) -> NDArray[Any]:
    """How well the synchronisation fits at `places`, in standard deviations."""
    scale, angle, y, x = (places[:, one : one + 1] for one in range(4))
    values = heard(spectrum, pattern.sync_at[None], scale, angle)
    turned = pattern.sync.conj() * moved(pattern.sync_at[None], y, x)
    return np.sum((values * turned).real, axis=1) / loudness(values)


def refine(spectrum: Spectrum | Together, pattern: Pattern, places: Places) -> tuple[Places, NDArray[Any]]:
    """`places` moved to where the synchronisation fits best nearby, and its score there."""
    count = np.arange(len(places))
    fitting = np.zeros(len(places))
    for size in (1, 1, 0.5, 0.5, 0.25):
        unit = np.ones_like(places) * [2 / spectrum.size, 2 / spectrum.size, 1, 1]
        unit[:, 0] *= places[:, 0]
        tries = places[:, None] + _STEPS * size * unit[:, None]
        scores = scores_of(spectrum, pattern, tries.reshape(-1, 4)).reshape(len(places), -1)
        best = np.argmax(scores, axis=1)
        places, fitting = tries[count, best], scores[count, best]
    return places, fitting
