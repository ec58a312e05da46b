"""Image to image and inpainting: choose the area to regenerate, keep the rest, and combine both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...models.errors import RequestError
from ..types import Array, Denoise
from . import image_io

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


@dataclass(frozen=True)
class Scene:
    """The input of image to image or inpainting."""

    picture: Image.Image
    """The init image for the model: RGB, at the generated size."""
    mask: Image.Image | None
    """L, at the generated size: white where the image is regenerated. None regenerates everything."""
    original: Image.Image
    """The image that the result is pasted into, RGB."""
    box: Box
    """The area of `picture` in `original`."""
    cover: Image.Image | None
    """L, at the size of `original`: the opacity of the generated image. None if there is no mask."""

    def finished(self, generated: Image.Image) -> Image.Image:
        """Paste `generated`, at the size of `picture`, into `original`, whose pixels stay unchanged outside `cover`."""
        if self.cover is None:
            return generated
        left, top, right, bottom = self.box
        whole = self.original.copy()
        whole.paste(image_io.fit(generated, right - left, bottom - top, "crop"), (left, top))
        return Image.composite(whole, self.original, self.cover)


def scene(
    init: Image.Image,
    mask: Image.Image | None,
    width: int,
    height: int,
    *,
    blur: float = 0.0,
    padding: int | None = None,
    how: image_io.How = "stretch",
) -> Scene:
    """Prepare `init` for generating at `width` × `height`.

    Args:
        init: the init image.
        mask: white where the image is regenerated; stretched over `init`.
        width: pixels, as `height`.
        height: the generated size.
        blur: standard deviation in pixels of the transition between the generated and the original image.
        padding: None regenerates the whole image. Otherwise only the masked area and this many pixels around it are generated, at the full
            size, and the result keeps the size of `init`.
        how: how `init`, and the mask with it, fits another shape.

    Raises:
        RequestError: `padding` is given and the mask is black.
    """
    if mask is not None:
        mask = mask.convert("L").resize(init.size, Image.Resampling.BILINEAR)
    if mask is None or padding is None:
        original = image_io.fit(init, width, height, how).convert("RGB")
        box = (0, 0, width, height)
    else:
        original, box = init.convert("RGB"), area(mask, padding, width / height)
    picture = _shown(original, box, width, height)
    if mask is None:
        return Scene(picture, None, original, box, None)
    spread = mask if padding is not None else image_io.fit(mask, width, height, how)
    return Scene(picture, _shown(spread, box, width, height), original, box, image_io.soften(spread, blur))


def _shown(whole: Image.Image, box: Box, width: int, height: int) -> Image.Image:
    """Return `box` at that size. If its aspect ratio differs, its edge pixels are extended, as in the web UI."""
    return whole if box == (0, 0, *whole.size) == (0, 0, width, height) else image_io.fit(whole.crop(box), width, height, "pad")


def area(mask: Image.Image, padding: int, shape: float) -> Box:
    """Return the smallest box of aspect ratio `shape` (width / height) around the white area of `mask` and `padding` pixels.

    If the image is too small for that ratio, the box is narrower.

    Raises:
        RequestError: the mask has no white pixel.
    """
    found = mask.point([0] * 128 + [255] * 128).getbbox()
    if found is None:
        raise RequestError("mask: all black; paint the area to regenerate white")
    width, height = mask.size
    left, top = max(0, found[0] - padding), max(0, found[1] - padding)
    right, bottom = min(width, found[2] + padding), min(height, found[3] + padding)
    left, right = _widened(left, right, round((bottom - top) * shape), width)
    top, bottom = _widened(top, bottom, round((right - left) / shape), height)
    return left, top, right, bottom


def _widened(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    """Widen the span to length `wanted` within 0 to `limit`, around its middle if possible."""
    missing = min(wanted, limit) - (end - start)
    if missing <= 0:
        return start, end
    start = min(max(0, start - missing // 2), limit - (end - start) - missing)
    return start, start + min(wanted, limit)


def keep_outside(denoise: Denoise, mask: Array, known: Array, noise: Array) -> Denoise:
    """Return a denoiser that regenerates where `mask` is 1 and keeps the latents `known` where it is 0: latent blending, for any U-Net.

    Before each call, `noise` at the current sigma is added to the known latents, so that the whole sample has one noise level; after it,
    the known latents are restored. All arrays are float32, (1, channels or 1, height, width) in latent pixels.
    """
    kept = (1 - mask).astype(np.float32)

    def blended(x: Array, sigma: float) -> Array:
        seen = mask * x + kept * (known + noise * np.float32(sigma))
        return (mask * denoise(seen.astype(np.float32), sigma) + kept * known).astype(np.float32)

    return blended


def pixel_mask(mask: Image.Image) -> Array:
    """Convert `mask` (L) to (1, 1, height, width): 1 where it is white (regenerated), 0 where it is black."""
    return (np.asarray(mask)[None, None] > 127).astype(np.float32)


def latent_mask(mask: Array, downscale: int) -> Array:
    """Convert a `pixel_mask` to latent pixels; each one that the mask touches is regenerated."""
    height, width = mask.shape[-2:]
    return mask.reshape(1, 1, height // downscale, downscale, width // downscale, downscale).max((3, 5))


def channels(mask: Array, masked: Array) -> Array:
    """Return the extra channels of an inpainting U-Net, (1, 1 + channels, height, width).

    They are a `pixel_mask`, subsampled to latent pixels as in training, and the latents of the image with the masked area grey.
    """
    height, width = int(masked.shape[-2]), int(masked.shape[-1])
    rows = np.arange(height) * int(mask.shape[-2]) // height
    columns = np.arange(width) * int(mask.shape[-1]) // width
    return np.concatenate([mask[..., rows[:, None], columns], masked], axis=1)
