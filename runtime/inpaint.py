"""Drawing into a picture: the part of it that is drawn, keeping the rest, and putting both together again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..models.errors import RequestError
from . import pictures
from .denoise import Array, Denoise
from .request import Request

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


@dataclass(frozen=True)
class Scene:
    """What is drawn over."""

    picture: Image.Image
    """RGB, at the size that is drawn."""
    mask: Image.Image | None
    """L, at that size: white where it is drawn anew. None: everywhere."""
    original: Image.Image
    """What the drawn picture is put into, RGB."""
    box: Box
    """Where `picture` lies in `original`."""
    cover: Image.Image | None
    """L, of the size of `original`: how much of what is drawn is seen."""

    def finished(self, drawn: Image.Image) -> Image.Image:
        """`drawn`, at the size of `picture`, in its place: outside of `cover`, the pixels of `original`."""
        if self.cover is None:
            return drawn
        left, top, right, bottom = self.box
        whole = self.original.copy()
        whole.paste(pictures.fit(drawn, right - left, bottom - top, "crop"), (left, top))
        return Image.composite(whole, self.original, self.cover)


def scene_of(request: Request, width: int, height: int) -> Scene | None:
    """What `request` draws over, `width` × `height`; none where it draws from nothing. Raises as `scene`."""
    if request.init is None:
        return None
    padding = request.mask_padding if request.only_masked else None
    return scene(request.init, request.mask, width, height, blur=request.mask_blur, padding=padding)


def scene(init: Image.Image, mask: Image.Image | None, width: int, height: int, *, blur: float = 0.0, padding: int | None = None) -> Scene:
    """`init` as it is drawn over at `width` × `height`, and what comes of it later.

    Args:
        init: the picture, resized to fit.
        mask: white where it is drawn anew, stretched over `init`.
        width: pixels, as `height`.
        height: what is drawn.
        blur: pixels over which what is drawn fades into the picture (standard deviation).
        padding: None: the whole picture is drawn. Otherwise the masked area and so many pixels around it alone, at the full size; the
            picture keeps its own.

    Raises:
        RequestError: an area is asked for, and the mask is black.
    """
    if mask is None or padding is None:
        original = pictures.fit(init, width, height).convert("RGB")
        box = (0, 0, width, height)
    else:
        original, box = init.convert("RGB"), area(mask.convert("L").resize(init.size, Image.Resampling.BILINEAR), padding, width / height)
    picture = _shown(original, box, width, height)
    if mask is None:
        return Scene(picture, None, original, box, None)
    spread = mask.convert("L").resize(original.size, Image.Resampling.BILINEAR)
    return Scene(picture, _shown(spread, box, width, height), original, box, pictures.soften(spread, blur))


def _shown(whole: Image.Image, box: Box, width: int, height: int) -> Image.Image:
    """What lies in `box`, at that size; of a box of another shape the edges are drawn out, as the web UI does it."""
    return whole if box == (0, 0, *whole.size) == (0, 0, width, height) else pictures.fit(whole.crop(box), width, height, "fill")


def area(mask: Image.Image, padding: int, shape: float) -> Box:
    """The smallest box around what is white in `mask` and `padding` pixels more that has the shape (width by height), as far as the
    picture reaches: where it does not, the box is narrower.

    Raises:
        RequestError: nothing is white.
    """
    found = mask.point([0] * 128 + [255] * 128).getbbox()
    if found is None:
        raise RequestError("mask: it is black everywhere: expected white where the picture is to be drawn anew")
    width, height = mask.size
    left, top = max(0, found[0] - padding), max(0, found[1] - padding)
    right, bottom = min(width, found[2] + padding), min(height, found[3] + padding)
    left, right = _widened(left, right, round((bottom - top) * shape), width)
    top, bottom = _widened(top, bottom, round((right - left) / shape), height)
    return left, top, right, bottom


def _widened(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    """The span made `wanted` long, as far as 0 to `limit` allow, around its middle if it can be."""
    missing = min(wanted, limit) - (end - start)
    if missing <= 0:
        return start, end
    start = min(max(0, start - missing // 2), limit - (end - start) - missing)
    return start, start + min(wanted, limit)


def keep_outside(denoise: Denoise, mask: Array, known: Array, noise: Array) -> Denoise:
    """A denoiser that redraws where `mask` is 1 and holds to the latents `known` where it is 0: latent blending, for any U-Net.

    Before each call the known part gets `noise` of the level asked for, so that the model sees a picture of one noise level;
    after it the known part is put back. All arrays are float32, (1, channels or 1, height, width) in latent pixels.
    """
    kept = (1 - mask).astype(np.float32)

    def blended(x: Array, sigma: float) -> Array:
        seen = mask * x + kept * (known + noise * np.float32(sigma))
        return (mask * denoise(seen.astype(np.float32), sigma) + kept * known).astype(np.float32)

    return blended


def pixel_mask(mask: Image.Image) -> Array:
    """1 where `mask` (L) is white (drawn anew), 0 where it is black, (1, 1, height, width)."""
    return (np.asarray(mask)[None, None] > 127).astype(np.float32)


def latent_mask(mask: Array, downscale: int) -> Array:
    """A `pixel_mask` in latent pixels; one that the mask touches at all is drawn anew."""
    height, width = mask.shape[-2:]
    return mask.reshape(1, 1, height // downscale, downscale, width // downscale, downscale).max((3, 5))


def channels(mask: Array, masked: Array) -> Array:
    """What an inpainting U-Net sees beside the sample: a `pixel_mask`, thinned out to latent pixels as such models were trained, and the
    latents of the picture with grey in the mask's place. (1, 1 + channels, height, width).
    """
    height, width = int(masked.shape[-2]), int(masked.shape[-1])
    rows = np.arange(height) * int(mask.shape[-2]) // height
    columns = np.arange(width) * int(mask.shape[-1]) // width
    return np.concatenate([mask[..., rows[:, None], columns], masked], axis=1)
