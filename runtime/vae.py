"""Pictures to latents and back, whole or in overlapping tiles.

A picture here is float32 in [-1, 1], (1, 3, height, width); latents are what the U-Net works on: (1, channels, height / 8,
width / 8) at about unit variance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..models.errors import NumericalError
from ..models.manifest import Latent
from .components import Handle
from .denoise import Array

TILE = 64
"""Side of a tile, in latent pixels."""
OVERLAP = 16
"""Of neighbouring tiles, in latent pixels."""


def decode(session: Handle, latents: Array, latent: Latent, *, tiled: bool = False) -> Array:
    """The picture of `latents`, clipped to [-1, 1].

    Raises:
        NumericalError: there are NaN or Inf in it: never a silent black picture.
    """

    def run(part: Array) -> Array:
        return session.run({"latent_sample": part})["sample"]

    z = (latents / latent.scaling + latent.shift).astype(np.float32)
    picture = _in_tiles(run, z, latent.downscale, 1) if tiled else run(z)
    if not np.isfinite(picture).all():
        raise NumericalError(
            f"the VAE decoder ({session.provider}) gave NaN or Inf: expected a picture; export with --precision vae_decoder=fp32"
        )
    return np.clip(picture, -1.0, 1.0)


def encode(session: Handle, picture: Array, latent: Latent, *, tiled: bool = False, noise: Array | None = None) -> Array:
    """The latents of `picture`: the mean of the posterior, or a sample of it where unit `noise` of their shape is given."""

    def run(part: Array) -> Array:
        return session.run({"sample": part})["latent_parameters"]

    parameters = _in_tiles(run, picture, 1, latent.downscale) if tiled else run(picture)
    mean, log_variance = np.split(parameters, 2, axis=1)
    if noise is not None:
        mean = mean + np.exp(0.5 * np.clip(log_variance, -30.0, 20.0)) * noise
    return ((mean - latent.shift) * latent.scaling).astype(np.float32)


def _in_tiles(run: Callable[[Array], Array], whole: Array, grow: int, shrink: int) -> Array:
    """`run` on overlapping tiles of `whole`, blended by weights that fall off linearly towards the seams.

    `grow` and `shrink` are output pixels an input pixel and the inverse; one of them is 1.
    """
    height, width = whole.shape[-2:]
    total: Array | None = None
    weights = np.zeros((height * grow // shrink, width * grow // shrink), np.float32)
    for top, bottom in _spans(height, TILE * shrink, OVERLAP * shrink):
        for left, right in _spans(width, TILE * shrink, OVERLAP * shrink):
            part = run(np.ascontiguousarray(whole[..., top:bottom, left:right]))
            if total is None:
                total = np.zeros((*part.shape[:2], *weights.shape), np.float32)
            rows = slice(top * grow // shrink, bottom * grow // shrink)
            columns = slice(left * grow // shrink, right * grow // shrink)
            ramp = OVERLAP * grow
            weight = np.outer(
                _ramp(part.shape[-2], ramp, top > 0, bottom < height),
                _ramp(part.shape[-1], ramp, left > 0, right < width),
            )
            total[..., rows, columns] += part * weight
            weights[rows, columns] += weight
    assert total is not None
    return total / weights


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Spans of at most `tile` that cover `length`, neighbours sharing at least `overlap`, as even as can be."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    step = (length - tile) / (count - 1)
    grain = 8
    starts = [min(round(index * step / grain) * grain, length - tile) for index in range(count)]
    return [(start, start + tile) for start in starts]


def _ramp(length: int, ramp: int, rises: bool, falls: bool) -> Array:  # noqa: FBT001  # private, and named by its callers
    weight = np.ones(length, np.float32)
    slope = (np.arange(ramp, dtype=np.float32) + 0.5) / ramp
    if rises:
        weight[:ramp] = slope
    if falls:
        weight[-ramp:] = np.minimum(weight[-ramp:], slope[::-1])
    return weight
