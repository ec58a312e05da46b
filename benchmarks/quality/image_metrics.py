"""Similarity of arrays and images, and what images look like on average, without a neural network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...models.errors import RequestError

Array = NDArray[Any]
EQUAL = 200.0
"""PSNR and SNR of equal arrays in dB, since JSON has no infinity."""
_TAPS, _SIGMA = 11, 1.5
_LUMA = (0.299, 0.587, 0.114)
_AREAS = 8


class Likeness(msgspec.Struct, frozen=True):
    """Similarity of two images."""

    psnr: float
    ssim: float
    gmsd: float


def likeness(reference: Array, other: Array) -> Likeness:
    """All three of two uint8 RGB images of one shape."""
    return Likeness(psnr(reference, other), ssim(reference, other), gmsd(reference, other))


def read(path: Path) -> Array:
    """An image's pixels: RGB, uint8, (height, width, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def psnr(reference: Array, other: Array) -> float:
    """The peak signal-to-noise ratio of two uint8 images of one shape, in dB; 200 for equal ones."""
    error = float(np.mean(np.square(reference.astype(np.float64) - other.astype(np.float64))))
    return EQUAL if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def snr(reference: Array, other: Array) -> float:
    """10·log10(|reference|² / |reference - other|²) in dB, 200 for equal arrays, -200 where `other` is not finite."""
    if reference.shape != other.shape or not np.isfinite(other).all():
        return -EQUAL
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(reference.astype(np.float64) - other.astype(np.float64))))
    return EQUAL if noise == 0.0 else 10.0 * math.log10(max(signal, 1e-300) / noise)


def ssim(reference: Array, other: Array) -> float:
    """The structural similarity of two uint8 RGB images, (height, width, 3), of one shape: 1 for equal ones.

    On luma (BT.601), with the Gaussian window of 11 × 11 (sigma 1.5) and the constants of Wang et al. 2004 ("Image quality
    assessment: from error visibility to structural similarity"), averaged where the window fits.

    Raises:
        RequestError: a side is shorter than 11 pixels.
    """
    if min(reference.shape[:2]) < _TAPS:
        raise RequestError(f"ssim: an image of {reference.shape[1]} × {reference.shape[0]}, expected sides of {_TAPS} or more pixels")
    x, y = (picture.astype(np.float64) @ np.asarray(_LUMA) for picture in (reference, other))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x * mean_x, _blurred(y * y) - mean_y * mean_y
    both = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    top = (2.0 * mean_x * mean_y + c1) * (2.0 * both + c2)
    return float(np.mean(top / ((mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2))))


def _blurred(plane: Array) -> Array:
    """`plane` under the Gaussian window, where that fits."""
    offsets = np.arange(_TAPS) - _TAPS // 2
    weights = np.exp(-0.5 * np.square(offsets / _SIGMA))
    weights /= weights.sum()
    rows = np.lib.stride_tricks.sliding_window_view(plane, _TAPS, axis=0) @ weights
    return np.lib.stride_tricks.sliding_window_view(rows, _TAPS, axis=1) @ weights


def gmsd(reference: Array, other: Array) -> float:
    """A perceptual distance of two uint8 RGB images, (height, width, 3), of one shape: 0 for equal ones, visible from about 0.05.

    The gradient magnitude similarity deviation of Xue, Zhang, Mou and Bovik 2014 ("Gradient magnitude similarity deviation: a
    highly efficient perceptual image quality index", arXiv:1308.3052): luma (BT.601) at half size, Prewitt gradients, c = 170,
    and the standard deviation of their similarity over the image. It follows what people see better than PSNR and SSIM do,
    without a network's weights, as LPIPS would need.

    Raises:
        RequestError: a side is shorter than 6 pixels.
    """
    if min(reference.shape[:2]) < 6:
        raise RequestError(f"gmsd: an image of {reference.shape[1]} × {reference.shape[0]}, expected sides of 6 or more pixels")
    one, two = (_gradient(_halved(picture.astype(np.float64) @ np.asarray(_LUMA))) for picture in (reference, other))
    similarity = (2.0 * one * two + 170.0) / (one * one + two * two + 170.0)
    return float(similarity.std())


def brightness(image: Array) -> float:
    """The mean luma (BT.601) of a uint8 RGB image, 0 for black to 1 for white."""
    return float(np.mean(image @ np.asarray(_LUMA))) / 255.0


def saturation(image: Array) -> float:
    """The mean saturation of a uint8 RGB image, (largest - smallest) / largest channel of each pixel: 0 for gray to 1."""
    pixels = image.astype(np.float64)
    largest: Array = pixels.max(axis=2)
    smallest: Array = pixels.min(axis=2)
    return float(np.mean((largest - smallest) / np.maximum(largest, 1.0)))


def detail(image: Array) -> float:
    """The mean gradient of a uint8 RGB image, (height, width, 3), sides of 6 or more: luma at half size, Prewitt, 0 for a flat image."""
    return float(np.mean(_gradient(_halved(image.astype(np.float64) @ np.asarray(_LUMA))))) / 255.0


def colours(image: Array) -> Array:
    """The mean colours of 8 × 8 areas of a uint8 RGB image: 192 numbers from 0 to 1, in which images are compared."""
    small = Image.fromarray(image).resize((_AREAS, _AREAS), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() / 255.0


def variety(images: Sequence[Array]) -> float | None:
    """How far apart `images` (uint8 RGB) are: the mean over all pairs of the root mean square difference of their `colours`.

    0 for equal images, 1 for black and white; None for fewer than two images.
    """
    if len(images) < 2:
        return None
    found = np.stack([colours(image) for image in images])
    first, second = np.triu_indices(len(images), 1)
    return float(np.sqrt(np.mean(np.square(found[first] - found[second]), axis=1)).mean())


def _halved(plane: Array) -> Array:
    """Means of 2 × 2 pixels; an odd row or column at the end is left out."""
    height, width = plane.shape[0] // 2, plane.shape[1] // 2
    return plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))


def _gradient(plane: Array) -> Array:
    """Magnitude of Prewitt's gradient, where its 3 × 3 pixels fit."""
    rows, columns = (plane[:-2] + plane[1:-1] + plane[2:]) / 3.0, (plane[:, :-2] + plane[:, 1:-1] + plane[:, 2:]) / 3.0
    return np.hypot(rows[:, :-2] - rows[:, 2:], columns[:-2] - columns[2:])
