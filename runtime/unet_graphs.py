"""Choose the graphs of a U-Net for a speed: the whole graph, the shared prefix and the rest, or the shallow graph of step caching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models.manifest import Graph, Noise
from .engine.components import Handle, Runner
from .sampling import shared_prefix
from .sampling.denoise import caller, unet
from .sampling.noise_levels import timestep_of
from .sampling.speed import TABLE, Savings, Speed
from .sampling.step_caching import reusing, segment_length, segments
from .types import EXTRA_CHANNELS, Array, Call, Feeds, Levels, Predict, Segment

STRIDE = "token_stride"
"""The graph input that sets the stride of keys and values."""
FULL, SHALLOW = "full", "shallow"
"""Names of the graphs for step caching."""
TOKENS = 2048
"""The least number of tokens for strided self-attention. With fewer, it takes little of the time, and each token matters more."""


class Saving(NamedTuple):
    """The model calls of one image. Create one for each image, since both parts cache values of it."""

    predict: Predict
    held: Segment | None = None
    """The steps in which guidance is reused, for `guidance.guided`."""


def saving(savings: Savings, session: Handle, noise: Noise, sigmas: Levels, size: tuple[int, int]) -> Saving:
    """Return the U-Net `session` with `savings`, for the schedule `sigmas` and latents of `size` (height, width).

    If the bundle has no graphs for step caching, only calls for the negative prompt are saved.
    """
    parts, exact = session.parts, savings == Savings()
    if exact and not (shared_prefix.NAME in parts and prefix_pays(session.components)):
        return Saving(unet(session, noise))
    segment = segments(sigmas, savings.every, savings.least)
    held = segment if savings.held else None
    if not parts.keys() >= {FULL, SHALLOW}:
        return Saving(unet(session, noise), held)
    more: dict[str, NDArray[np.generic]] = {}
    grid = _grid(parts[FULL])
    if grid is not None:
        strided = savings.strided and size[0] * size[1] // grid**2 >= TOKENS
        more[STRIDE] = np.array([2, 2] if strided else [1, 1], np.int64)
    full = shared_prefix.SharedPrefixUnet(parts[shared_prefix.NAME], parts[FULL]) if shared_prefix.NAME in parts else parts[FULL]
    if exact:
        return Saving(unet(full, noise, more))
    shallow = _with_known_feeds(parts[SHALLOW], noise)
    return Saving(reusing(caller(full, noise), shallow, more, timestep_of(noise), segment), held)


def _with_known_feeds(session: Handle, noise: Noise) -> Call:
    """Return `caller` without the feeds that the graph has no input for: a shallow graph may not use the prompt."""
    call, names = caller(session, noise), {*session.inputs, EXTRA_CHANNELS}

    def filtered(x: Array, sigma: float, feeds: Feeds, more: Feeds) -> Mapping[str, Array]:
        given, further = ({name: value for name, value in one.items() if name in names} for one in (feeds, more))
        return call(x, sigma, given, further)

    return filtered


def _grid(handle: Handle) -> int | None:
    return handle.component.grid if isinstance(handle.component, Graph) else None


def notes(speed: Speed, session: Handle, steps: int) -> tuple[str, ...]:
    """Return a note if the bundle does not support all savings of `speed`, or if an image of `steps` steps is too short for them."""
    savings = TABLE[speed]
    if savings == Savings():
        return ()
    if segment_length(steps, savings.every, savings.least) == 1:
        return (f"speed {speed}: no step is skipped in {steps} steps; it needs at least {2 * savings.least}",)
    if session.parts.keys() >= {FULL, SHALLOW}:
        return ()
    return (f"speed {speed}: the bundle has no graphs for step caching, so only calls for the negative prompt are saved; export it again",)


def prefix_pays(components: Runner) -> bool:
    """Whether the shared prefix saves time: on the CPU, with the plan `resident`. Its outputs stay in memory between calls (21 MB for
    SD 1.5 at 512×512); on a GPU they would be copied to and from the device each time.
    """
    return components.plan == "resident" and components.provider.device is None
