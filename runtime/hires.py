"""Hires fix: what was drawn at a size the model knows is upscaled, noised again and drawn over at the large size.

Latents are upscaled by themselves (which blurs them, so that more has to be drawn anew), or the picture that they stand for is
decoded, upscaled and encoded again (which costs two runs of the VAE and keeps more).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .denoise import Array
from .schedules import key_of, unknown

Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Distance in input pixels → weight."""


@dataclass(frozen=True)
class Upscaler:
    """One way to a larger size."""

    name: str
    label: str
    """As A1111 writes it in its metadata."""
    strength: float
    """How much is drawn anew afterwards where nobody says."""
    kernel: Kernel | None = None
    """Of the latents; None: the picture is resized, by Lanczos' kernel."""
    reach: int = 0
    """Input pixels on each side of a place that count; 0: the one that the place lies in."""


def find(name: str) -> Upscaler:
    """The upscaler of that name, ours or A1111's; case, spaces and brackets do not count.

    Raises:
        RequestError: there is none; the message lists all.
    """
    found = _BY_KEY.get(key_of(name))
    if found is None:
        raise unknown("hires_upscaler", name, UPSCALERS)
    return found


def resize(latents: Array, height: int, width: int, upscaler: Upscaler) -> Array:
    """`latents`, (n, channels, h, w), at least as large in each direction: (n, channels, height, width), float32.

    Pixels are squares whose corners meet, as in torch with `align_corners=False`; beyond the border lies its last pixel.
    """
    rows = _weights(latents.shape[-2], height, upscaler)
    columns = _weights(latents.shape[-1], width, upscaler)
    return np.ascontiguousarray(rows @ latents.astype(np.float64) @ columns.T, np.float32)


def _weights(length: int, target: int, upscaler: Upscaler) -> NDArray[np.float64]:
    """(target, length): each output pixel as a weighted mean of input pixels."""
    result = np.zeros((target, length))
    places = np.arange(target)
    if upscaler.reach == 0 or upscaler.kernel is None:
        result[places, places * length // target] = 1.0
        return result
    centre = (places + 0.5) * length / target - 0.5
    for offset in range(1 - upscaler.reach, upscaler.reach + 1):
        pixel = np.floor(centre) + offset
        np.add.at(result, (places, pixel.clip(0, length - 1).astype(np.int64)), upscaler.kernel(np.abs(centre - pixel)))
    return result / result.sum(axis=1, keepdims=True)


def _nearest(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ones_like(distance)


def _linear(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - distance)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys 1981 with a = -0.75, as torch has it."""
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
