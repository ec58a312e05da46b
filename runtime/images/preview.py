"""Cheap previews: RGB as a linear function of the latents, one pixel per latent pixel.

The factors of each model come from a regression on its own decoder's output for a chart of random latents.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...models.manifest import Latent, Manifest
from ..engine.components import Handle
from ..types import Array
from . import vae

Factors = NDArray[np.float64]
"""(channels + 1, 3): red, green and blue (-1 to 1) of each channel; the last row is the offset."""

PATCHES, PATCH = 8, 4
"""Patches along a side of the chart, and latent pixels along a side of a patch. Latents are constant within a patch."""


def fit(decode: Callable[[Array], Array], channels: int) -> Factors:
    """Fit the factors of an autoencoder. `decode` converts the U-Net's latents, (1, channels, height, width), to an image."""
    z = np.random.default_rng(0).standard_normal((channels, PATCHES, PATCHES)).repeat(PATCH, 1).repeat(PATCH, 2)
    image, side = decode(z[None].astype(np.float32))[0], PATCHES * PATCH
    scale = image.shape[1] // side
    colours = image.reshape(3, side, scale, side, scale).mean((2, 4), dtype=np.float64)
    rows = np.column_stack([z.reshape(channels, -1).T, np.ones(side * side)])
    return np.asarray(np.linalg.lstsq(rows, colours.reshape(3, -1).T, rcond=None)[0], np.float64)


def stated(manifest: Manifest) -> Factors | None:
    """Return the factors in the manifest, if it has any."""
    return np.asarray(manifest.preview, np.float64) if manifest.preview else None


def factors(decoder: Handle, latent: Latent) -> Factors:
    """Fit the factors of a bundle's decoder."""
    return fit(lambda z: vae.decode(decoder, z, latent), latent.channels)


def linear(latents: Array, factors: Factors) -> Image.Image:
    """Return the preview of the U-Net's `latents`, (1, channels, height, width): `width` × `height` pixels, RGB."""
    z = latents[0].transpose(1, 2, 0)
    colours = z @ factors[:-1] + factors[-1]
    return Image.fromarray(np.rint((np.nan_to_num(colours).clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8))
