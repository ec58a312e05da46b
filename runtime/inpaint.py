"""Keeping a part of a picture while the rest is drawn: latent blending, which works with any U-Net."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from .denoise import Array, Denoise


def keep_outside(denoise: Denoise, mask: Array, known: Array, noise: Array) -> Denoise:
    """A denoiser that redraws where `mask` is 1 and holds to the latents `known` where it is 0.

    Before each call the known part gets `noise` of the level asked for, so that the model sees a picture of one noise level;
    after it the known part is put back. All arrays are float32, (1, channels or 1, height, width) in latent pixels.
    """
    kept = (1 - mask).astype(np.float32)

    def blended(x: Array, sigma: float) -> Array:
        seen = mask * x + kept * (known + noise * np.float32(sigma))
        return (mask * denoise(seen.astype(np.float32), sigma) + kept * known).astype(np.float32)

    return blended


def pixel_mask(mask: Image.Image, width: int, height: int) -> Array:
    """`mask` at that size: 1 where it is white (drawn anew), 0 where it is black, (1, 1, height, width)."""
    grey = mask.convert("L").resize((width, height), Image.Resampling.BILINEAR)
    return (np.asarray(grey)[None, None] > 127).astype(np.float32)


def latent_mask(mask: Array, downscale: int) -> Array:
    """A `pixel_mask` in latent pixels; one that the mask touches at all is drawn anew."""
    height, width = mask.shape[-2:]
    return mask.reshape(1, 1, height // downscale, downscale, width // downscale, downscale).max((3, 5))


def paste(drawn: Image.Image, original: Image.Image, mask: Image.Image, feather: float = 2.0) -> Image.Image:
    """`drawn` where `mask` is white, the pixels of `original` elsewhere, blended over `feather` pixels at the border."""
    soft = mask.convert("L").resize(drawn.size, Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(feather))
    return Image.composite(drawn, original, soft)
