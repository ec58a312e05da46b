"""What a detector listens to: the whitened spectrum of an image without its content, sampled where a lattice would be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pattern import TILE, Complex, Floats

_LOUD = 2.5
"""Samples are cut at this multiple of the usual magnitude: regular textures are not to decide alone."""


def residual(luma: Floats) -> Floats:
    """`luma` without its smooth content, and quieter where the image is busy."""
    high: Floats = luma - box(box(luma, 2), 2)
    spread = np.sqrt(box(_square(high), 3) + np.float32(0.02)).astype(np.float32)
    heard: Floats = (np.clip(high / spread, -3, 3) / (spread + np.float32(3))).astype(np.float32)
    return heard


def _square(values: Floats) -> Floats:
    return values * values


def box(values: Floats, radius: int) -> Floats:
    """Mean over squares of 2 × `radius` + 1 pixels; edges are continued."""
    size = 2 * radius + 1
    for axis in (0, 1):
        around = [(radius + 1, radius) if axis == one else (0, 0) for one in (0, 1)]
        total = np.moveaxis(np.cumsum(np.pad(values, around, mode="edge"), axis=axis, dtype=np.float64), axis, 0)
        values = np.moveaxis(((total[size:] - total[:-size]) / size).astype(np.float32), 0, axis)
    return values


class Spectrum:
    """The spectrum of a window of a residual: whitened, twice as fine as its size, phases about the window's centre."""

    def __init__(self, window: Floats, centre: tuple[float, float]) -> None:
        """Compute it; `centre` is the window's place (y, x) in its image."""
        self.centre = centre
        height, width = window.shape
        self.size = max(height, width)
        fine = -(-self.size // 32) * 64
        padded = np.zeros((fine, fine), np.float32)
        padded[:height, :width] = window
        padded = np.roll(padded, (-(height // 2), -(width // 2)), (0, 1))
        full = np.fft.rfft2(padded, axes=(1, 0))
        power: Floats = (full.real**2 + full.imag**2).astype(np.float32)
        self._values: Complex = (full / np.sqrt(box(power, fine // 40) + np.float32(1e-9))).astype(np.complex64).ravel()
        self._fine = fine

    def at(self, fy: NDArray[Any], fx: NDArray[Any]) -> Complex:
        """Samples at frequencies in cycles per pixel, fy above 0; interpolated."""
        fine, values = self._fine, self._values
        y, x = (fy * fine).astype(np.float32), (fx * fine).astype(np.float32)
        row, column = np.floor(y), np.floor(x)
        dy, dx = y - row, x - column
        start = np.clip(row.astype(np.int32), 0, fine // 2 - 1) * fine
        left = column.astype(np.int32)
        right, left = (left + 1) % fine, left % fine
        upper = values[start + left] * (1 - dx) + values[start + right] * dx
        start += fine
        return upper * (1 - dy) + (values[start + left] * (1 - dx) + values[start + right] * dx) * dy


class Together:
    """Several windows of one image, heard as one: phases about the centre of the first."""

    def __init__(self, spectra: list[Spectrum]) -> None:
        """Join `spectra`, which must not be empty."""
        self._spectra = spectra
        places = np.array([spectrum.centre for spectrum in spectra])
        self._offsets = places - places[0]
        self.size = int(np.ptp(places, axis=0).max()) + spectra[0].size

    def at(self, fy: NDArray[Any], fx: NDArray[Any]) -> Complex:
        """Samples as in `Spectrum.at`."""
        total = np.zeros(fy.shape, np.complex64)
        for (y, x), spectrum in zip(self._offsets, self._spectra, strict=True):
            total += spectrum.at(fy, fx) * np.exp(-2j * np.pi * (fy * y + fx * x)).astype(np.complex64)
        return total / np.float32(len(self._spectra) ** 0.5)


def lattice(points: NDArray[np.int64], scale: NDArray[Any], angle: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Frequencies in cycles per pixel (y, x) of lattice points, in an image scaled by `scale` and turned by `angle` in radians."""
    cosine, sine = np.cos(angle) / (TILE * scale), np.sin(angle) / (TILE * scale)
    return points[..., 0] * cosine - points[..., 1] * sine, points[..., 0] * sine + points[..., 1] * cosine


def heard(spectrum: Spectrum | Together, points: NDArray[np.int64], scale: NDArray[Any], angle: NDArray[Any]) -> Complex:
    """Samples at lattice points, loud ones cut."""
    values = spectrum.at(*lattice(points, scale, angle))
    size = np.abs(values)
    return values * (np.minimum(size, np.float32(_LOUD)) / np.maximum(size, np.float32(1e-9)))


def moved(points: NDArray[np.int64], y: NDArray[Any], x: NDArray[Any]) -> Complex:
    """The factors that move a tile's origin to the centre, from `y`, `x` pixels of the tile away."""
    angle = (points[..., 0] * y + points[..., 1] * x) * (2 * np.pi / TILE)
    return np.exp(1j * angle.astype(np.float32)).astype(np.complex64)


def loudness(values: Complex) -> NDArray[Any]:
    """Standard deviation of a sum of `values` over the last axis if their phases were random."""
    return np.sqrt(0.5 * np.sum(values.real**2 + values.imag**2, axis=-1)) + 1e-9
