"""Hires fix: generate at a size that the model knows, upscale, add noise, and denoise again at the large size.

Either the latents are upscaled directly (which blurs them, so more must be regenerated), or they are decoded, upscaled as an image and
encoded again (which costs two VAE runs and preserves more).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..names import key_of, look_up
from ..types import Array

Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Distance in input pixels → weight."""


@dataclass(frozen=True)
class Upscaler:
    """An upscaling method."""

    name: str
    label: str
    """A1111's name in image metadata."""
    strength: float
    """The default denoising strength after upscaling."""
    kernel: Kernel | None = None
    """The kernel for latents; None resizes the decoded image with a Lanczos kernel."""
    reach: int = 0
    """The kernel's radius in input pixels; 0 uses the pixel that contains the position."""


def find_upscaler(name: str) -> Upscaler:
    """Find an upscaler by its name or A1111 label. Case, spaces and brackets do not matter.

    Raises:
        RequestError: unknown name; the message lists the known ones.
    """
    return look_up("hires_upscaler", name, _BY_KEY, UPSCALERS)


def resize(latents: Array, height: int, width: int, upscaler: Upscaler) -> Array:
    """Upscale `latents`, (n, channels, h, w), to (n, channels, height, width), float32. Neither side may shrink.

    Pixels are squares as in torch with `align_corners=False`; border pixels are repeated beyond the border.
    """
    rows = _weights(latents.shape[-2], height, upscaler)
    columns = _weights(latents.shape[-1], width, upscaler)
    return np.ascontiguousarray(rows @ latents.astype(np.float64) @ columns.T, np.float32)


def _weights(length: int, target: int, upscaler: Upscaler) -> NDArray[np.float64]:
    """Return (target, length): the weights of the input pixels for each output pixel."""
    result = np.zeros((target, length))
    positions = np.arange(target)
    if upscaler.reach == 0 or upscaler.kernel is None:
        result[positions, positions * length // target] = 1.0
        return result
    centre = (positions + 0.5) * length / target - 0.5
    for offset in range(1 - upscaler.reach, upscaler.reach + 1):
        pixel = np.floor(centre) + offset
        np.add.at(result, (positions, pixel.clip(0, length - 1).astype(np.int64)), upscaler.kernel(np.abs(centre - pixel)))
    return result / result.sum(axis=1, keepdims=True)


def _nearest(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ones_like(distance)


def _linear(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - distance)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic convolution (Keys 1981) with a = -0.75, as in torch."""
    a, d = -0.75, distance
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    return np.where(d <= 1.0, near, np.where(d < 2.0, ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a, 0.0))


def _lanczos(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(distance < 3.0, np.sinc(distance) * np.sinc(distance / 3.0), 0.0)


UPSCALERS: dict[str, Upscaler] = {
    entry.name: entry
    for entry in (
        Upscaler("lanczos", "Lanczos", 0.5),
        Upscaler("latent", "Latent", 0.6, _linear, 1),
        Upscaler("latent_nearest", "Latent (nearest)", 0.6, _nearest),
        Upscaler("latent_bicubic", "Latent (bicubic)", 0.6, _cubic, 2),
        Upscaler("latent_lanczos", "Latent (lanczos)", 0.6, _lanczos, 3),
    )
}
"""Every upscaler by its name."""

_ALIASES = {
    "latentnearestexact": "latent_nearest",
    "latentbilinear": "latent",
    "latentantialiased": "latent",
    "latentbicubicantialiased": "latent_bicubic",
}
_BY_KEY = {key_of(alias): entry for entry in UPSCALERS.values() for alias in (entry.name, entry.label)} | {
    alias: UPSCALERS[name] for alias, name in _ALIASES.items()
}
