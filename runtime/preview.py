"""Cheap previews: the colours of latents as a linear function of them, one pixel a latent pixel.

Its factors are found for each model, by regression on what its own decoder makes of a chart of random latents.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models.manifest import Latent, Manifest
from . import vae
from .components import Handle
from .denoise import Array

Factors = NDArray[np.float64]
"""(channels + 1, 3): red, green and blue (-1 to 1) of each channel, and in the last row of nothing."""

PATCHES, PATCH = 8, 4
"""Patches of the same latents along a side of the chart, and latent pixels along a side of a patch."""


def fit(decode: Callable[[Array], Array], channels: int) -> Factors:
    """The factors of the autoencoder whose `decode` takes latents as the U-Net has them, (1, channels, height, width), to a picture."""
    z = np.random.default_rng(0).standard_normal((channels, PATCHES, PATCHES)).repeat(PATCH, 1).repeat(PATCH, 2)
    picture, side = decode(z[None].astype(np.float32))[0], PATCHES * PATCH
    grain = picture.shape[1] // side
    colours = picture.reshape(3, side, grain, side, grain).mean((2, 4), dtype=np.float64)
    rows = np.column_stack([z.reshape(channels, -1).T, np.ones(side * side)])
    return np.asarray(np.linalg.lstsq(rows, colours.reshape(3, -1).T, rcond=None)[0], np.float64)


def stated(manifest: Manifest) -> Factors | None:
    """Those that a bundle says, if it says some."""
    return np.asarray(manifest.preview, np.float64) if manifest.preview else None


def factors(decoder: Handle, latent: Latent) -> Factors:
    """Those of a bundle's decoder."""
    return fit(lambda z: vae.decode(decoder, z, latent), latent.channels)


def linear(latents: Array, factors: Factors) -> Image.Image:
    """The picture of `latents`, (1, channels, height, width), as the U-Net has them: `width` × `height` pixels, RGB."""
    z = latents[0].transpose(1, 2, 0)
    colours = z @ factors[:-1] + factors[-1]
    return Image.fromarray(np.rint((np.nan_to_num(colours).clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8))
