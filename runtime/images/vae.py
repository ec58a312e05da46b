"""Convert images to latents and back: in one session call (whole or in bands of rows), or in overlapping tiles.

Images are float32 in [-1, 1], (1, 3, height, width). Latents are those of the U-Net, (1, channels, height / 8, width / 8), with about unit
variance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from ...models.errors import BundleError, NumericalError
from ...models.manifest import Latent
from ..engine.components import Handle
from ..engine.ort_errors import scarce
from ..types import Array

OVERLAP = 8
"""The overlap of neighbouring tiles, in latent pixels."""


def decode(session: Handle, latents: Array, latent: Latent, *, tile: int = 0) -> Array:
    """Decode `latents` to an image, clipped to [-1, 1]. If `tile` is not 0, decode in tiles of at most that many latent pixels per side.

    Raises:
        NumericalError: the latents or the image contain NaN or Inf.
        ResourceError: not enough memory.
    """

    def run(part: Array) -> Array:
        (batch, _, height, width), factor = part.shape, latent.downscale
        return _of_shape(session, "sample", {"latent_sample": part}, (batch, 3, height * factor, width * factor))

    with scarce("decoding"):
        with np.errstate(all="ignore"):
            scale, shift = _affine(latent)
            z = (latents / scale + shift).astype(np.float32)
        if not np.isfinite(z).all():  # an int8 decoder would turn them into finite noise
            raise NumericalError(
                f"NaN or Inf in the latents before decoding (scaling {latent.scaling:g}, shift {latent.shift:g}), expected finite numbers; "
                f"check the bundle with `diffusette verify`, or export the model again"
            )
        image = _in_tiles(run, z, tile, latent.downscale, 1) if tile else run(z)
        if not np.isfinite(image).all():
            raise NumericalError(
                f"the VAE decoder ({session.provider}) returned NaN or Inf, expected an image; export with --precision vae_decoder=fp32"
            )
        return np.clip(image, -1.0, 1.0)


def encode(session: Handle, image: Array, latent: Latent, *, tile: int = 0) -> Array:
    """Encode `image` to latents, the mean of the posterior. Tiles work as in `decode`.

    Encoders in the older diffusers layout output `latent_sample`, a random sample drawn inside the graph, which no seed controls; it is
    used unchanged.

    Raises:
        NumericalError: the latents contain NaN or Inf.
    """
    sampled = "latent_parameters" not in session.outputs and "latent_sample" in session.outputs
    name, channels = ("latent_sample", latent.channels) if sampled else ("latent_parameters", 2 * latent.channels)

    def run(part: Array) -> Array:
        (batch, _, height, width), factor = part.shape, latent.downscale
        return _of_shape(session, name, {"sample": part}, (batch, channels, height // factor, width // factor))

    parameters = _in_tiles(run, image, tile, 1, latent.downscale) if tile else run(image)
    if not np.isfinite(parameters).all():
        raise NumericalError(
            f"the VAE encoder ({session.provider}) returned NaN or Inf, expected latents; export with --precision vae_encoder=fp32"
        )
    mean = parameters if sampled else parameters[:, : latent.channels]
    scale, shift = _affine(latent)
    return ((mean - shift) * scale).astype(np.float32)


def _of_shape(session: Handle, name: str, feeds: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """Run `session` and return its output `name`.

    Raises:
        BundleError: the output is missing or has not the shape `shape`.
    """
    found = session.run(feeds).get(name)
    if found is None or found.shape != shape:
        what = "nothing" if found is None else str(list(found.shape))
        raise BundleError(f"{session.name}: the graph returned {what} as {name}, expected {list(shape)}; export the model again")
    return found


def unscaled(latents: Array, latent: Latent) -> Array:
    """`latents` as the encoder returns them, without scaling: what pix2pix models receive."""
    scale, _ = _affine(latent)
    return (latents / scale).astype(np.float32)


def _affine(latent: Latent) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and shift, (channels or 1, 1, 1): U-Net latents = (VAE latents - shift) × scale.

    With `mean` and `std`, as in diffusers' SDXL pipelines: latents × std / scaling + mean before decoding.
    """
    if latent.std is UNSET or latent.mean is UNSET:
        return np.array(latent.scaling), np.array(latent.shift)
    return latent.scaling / np.array(latent.std)[:, None, None], np.array(latent.mean)[:, None, None]


def _in_tiles(run: Callable[[Array], Array], whole: Array, tile: int, grow: int, shrink: int) -> Array:
    """Call `run` on overlapping tiles of `whole` and blend them with weights that fall off linearly toward the seams.

    `tile` is the largest side of a tile in latent pixels. `grow` is the number of output pixels per input pixel, `shrink` the inverse; one
    of them is 1.
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
    """Cover `length` with the fewest spans of at most `tile`, all of equal size, that overlap by at least `OVERLAP`."""
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
