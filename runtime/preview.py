"""Cheap previews: the colours of latents as a linear function of them, one pixel a latent pixel.

For the autoencoders of Stable Diffusion the factors are well known (found by regression; ComfyUI's `latent_formats` has the same);
for any other, they are found likewise, from a chart of colours that its encoder is shown once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .denoise import Array

Factors = NDArray[np.float64]
"""(channels + 1, 3): red, green and blue (-1 to 1) of each channel, and in the last row of nothing."""

_SD = (
    (0.3512, 0.2297, 0.3227),
    (0.3250, 0.4974, 0.2350),
    (-0.2829, 0.1762, 0.2721),
    (-0.2120, -0.2616, -0.7177),
    (0.0, 0.0, 0.0),
)
_SDXL = (
    (0.3651, 0.4232, 0.4341),
    (-0.2533, -0.0042, 0.1068),
    (0.1076, 0.1111, -0.0362),
    (-0.3165, -0.2492, -0.2188),
    (0.1084, -0.0175, -0.0011),
)
PATCHES, PATCH = 8, 4
"""Patches of one colour along a side of the chart, and latent pixels along a side of a patch."""


def known(architecture: str, channels: int) -> Factors | None:
    """The factors of Stable Diffusion's autoencoder of that architecture; None for another number of channels."""
    if channels != 4:
        return None
    return np.array(_SDXL if architecture == "sdxl" else _SD)


def fit(encode: Callable[[Array], Array], downscale: int) -> Factors:
    """The factors of the autoencoder whose `encode` takes a picture, (1, 3, height, width), to latents as the U-Net has them."""
    colours = np.random.default_rng(0).uniform(-1.0, 1.0, (3, PATCHES, PATCHES))
    colours[:, 0] = np.linspace(-1.0, 1.0, PATCHES)  # greys, which most pictures are near to
    chart = colours.repeat(PATCH, 1).repeat(PATCH, 2)
    latents = encode(chart.repeat(downscale, 1).repeat(downscale, 2)[None].astype(np.float32))
    rows = latents[0].reshape(latents.shape[1], -1).T.astype(np.float64)
    return np.linalg.lstsq(np.column_stack([rows, np.ones(len(rows))]), chart.reshape(3, -1).T, rcond=None)[0].astype(np.float64)


def linear(latents: Array, factors: Factors) -> Image.Image:
    """The picture of `latents`, (1, channels, height, width), as the U-Net has them: `width` × `height` pixels, RGB."""
    z = latents[0].transpose(1, 2, 0)
    colours = z @ factors[:-1] + factors[-1]
    return Image.fromarray(np.rint((np.nan_to_num(colours).clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8))
