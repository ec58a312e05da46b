"""Pictures to latents and back: as the session does it (whole, or in bands), or in overlapping tiles.

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
from .failures import scarce

OVERLAP = 8
"""Of neighbouring tiles, in latent pixels."""


def decode(session: Handle, latents: Array, latent: Latent, *, tile: int = 0) -> Array:
    """The picture of `latents`, clipped to [-1, 1]; in tiles of at most `tile` latent pixels a side, if that is not 0.

    Raises:
        NumericalError: there are NaN or Inf in it: never a silent black picture.
        ResourceError: memory does not suffice.
    """

    def run(part: Array) -> Array:
        return session.run({"latent_sample": part})["sample"]

    with scarce("decoding"):
        z = (latents / latent.scaling + latent.shift).astype(np.float32)
        picture = _in_tiles(run, z, tile, latent.downscale, 1) if tile else run(z)
        if not np.isfinite(picture).all():
            raise NumericalError(
                f"the VAE decoder ({session.provider}) gave NaN or Inf: expected a picture; export with --precision vae_decoder=fp32"
            )
        return np.clip(picture, -1.0, 1.0)


def encode(session: Handle, picture: Array, latent: Latent, *, tile: int = 0) -> Array:
    """The latents of `picture`: the mean of the posterior.

    In tiles as `decode`. An encoder of the older diffusers layout gives `latent_sample`, a sample drawn inside the graph, which is then
    taken as it is: nothing outside decides what is drawn there.

    Raises:
        NumericalError: there are NaN or Inf in them.
    """
    sampled = "latent_parameters" not in session.outputs and "latent_sample" in session.outputs

    def run(part: Array) -> Array:
        return session.run({"sample": part})["latent_sample" if sampled else "latent_parameters"]

    parameters = _in_tiles(run, picture, tile, 1, latent.downscale) if tile else run(picture)
    if not np.isfinite(parameters).all():
        raise NumericalError(
            f"the VAE encoder ({session.provider}) gave NaN or Inf: expected latents; export with --precision vae_encoder=fp32"
        )
    mean = parameters if sampled else parameters[:, : latent.channels]
    return ((mean - latent.shift) * latent.scaling).astype(np.float32)


def _in_tiles(run: Callable[[Array], Array], whole: Array, tile: int, grow: int, shrink: int) -> Array:
    """`run` on overlapping tiles of `whole`, blended by weights that fall off linearly towards the seams.

    `tile` is the most that one has along a side, in latent pixels; `grow` and `shrink` are output pixels an input pixel and the
    inverse, one of which is 1.
    """
    height, width = (side // shrink for side in whole.shape[-2:])
    total: Array | None = None
    weights = np.zeros((height * grow, width * grow), np.float32)
    for top, bottom in _spans(height, tile):
        for left, right in _spans(width, tile):
            part = run(np.ascontiguousarray(whole[..., top * shrink : bottom * shrink, left * shrink : right * shrink]))
            if total is None:
                total = np.zeros((*part.shape[:2], *weights.shape), np.float32)
            rows, columns = slice(top * grow, bottom * grow), slice(left * grow, right * grow)
            weight = np.outer(
                _ramp(part.shape[-2], OVERLAP * grow, top > 0, bottom < height),
                _ramp(part.shape[-1], OVERLAP * grow, left > 0, right < width),
            )
            total[..., rows, columns] += part * weight
            weights[rows, columns] += weight
    assert total is not None
    total /= weights
    return total


def _spans(length: int, tile: int) -> list[tuple[int, int]]:
    """As few spans of at most `tile` as cover `length`, all of one size, neighbours sharing at least `OVERLAP`."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - OVERLAP) // (tile - OVERLAP))
    size = -(-(length + (count - 1) * OVERLAP) // count)
    starts = [(length - size) * index // (count - 1) for index in range(count)]
    return [(start, start + size) for start in starts]


def _ramp(length: int, ramp: int, rises: bool, falls: bool) -> Array:  # noqa: FBT001  # private, and named by its callers
    weight = np.ones(length, np.float32)
    slope = (np.arange(ramp, dtype=np.float32) + 0.5) / ramp
    if rises:
        weight[:ramp] = slope
    if falls:
        weight[-ramp:] = np.minimum(weight[-ramp:], slope[::-1])
    return weight
