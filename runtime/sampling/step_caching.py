"""Step caching: deep features of the U-Net are computed every few steps and extrapolated in between.

DeepCache (Ma et al. 2023, arXiv:2312.00858) with TaylorSeer's first-order extrapolation (Liu et al. 2025, arXiv:2503.06923).
`export/subgraphs/step_caching.py` creates the graphs. Cached values are kept for one image only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..types import Array, Call, Feeds, Levels, Predict, Segment
from .denoise import combine

DEEP = "deep_features"
"""The name of the graph output that is cached and of the graph input that takes it."""
BRANCHES = 8
"""The most prompts, including negative ones, whose deep features are kept. With more, every step is computed in full."""


def segments(sigmas: Levels, every: int, least: int) -> Segment:
    """Divide the steps into segments and return the function from sigma to the number of its segment, from 1.

    A segment has `every` steps, the last one two, and the first one the remainder; segments are shorter if there would be fewer than
    `least`. Measured: a full call shortly before the end improves the image more than one in the very last step. A sampler that looks ahead
    to the next step's sigma (Heun's method) begins that segment early; one that goes back up in noise returns to an earlier segment, which
    recomputes the features.
    """
    steps = len(sigmas) - 1
    every = segment_length(steps, every, least)
    begins = range(steps) if every == 1 else sorted({0, *range(steps - 2, 0, -every)})
    first = np.asarray(sigmas, np.float64)[list(begins)]
    return lambda sigma: int(np.count_nonzero(first >= sigma * (1.0 - 1e-6)))


def segment_length(steps: int, every: int, least: int) -> int:
    """Return the steps of a segment: `every`, or fewer if `steps` would otherwise make less than `least` segments."""
    return max(1, min(every, steps // least))


@dataclass(frozen=True)
class _Kept:
    """Deep features of a prompt from its last full calls."""

    feeds: Feeds
    """Holding these arrays keeps their ids unique."""
    segment: int
    time: float
    deep: Array
    before: tuple[float, Array] | None
    """Timestep and deep features of the full call before that."""

    def at(self, time: float) -> Array:
        """Extrapolate the deep features linearly from the last two full calls, at most as far as the distance between these."""
        if self.before is None or self.before[0] == self.time:
            return self.deep
        share = (time - self.time) / (self.time - self.before[0])
        share = min(max(share, 0.0), 1.0)
        return combine((1.0 + share, self.deep), (-share, self.before[1]))


def reusing(full: Call, shallow: Call, more: Feeds, timestep: Callable[[float], float], segment: Segment) -> Predict:
    """Return a prediction function that computes one full call per segment and prompt, and approximates the others.

    `full` returns `deep_features`, which `shallow` takes as an input. Prompts are identified by the ids of their arrays, so a prompt whose
    text changes during the run counts as a new one.
    """
    kept: dict[tuple[int, ...], _Kept] = {}

    def predict(x: Array, sigma: float, feeds: Feeds) -> Array:
        key = tuple(id(value) for value in feeds.values())
        known, part, time = kept.pop(key, None), segment(sigma), timestep(sigma)
        if known is not None and known.segment == part:
            kept[key] = known
            return shallow(x, sigma, feeds, {**more, DEEP: known.at(time)})["out_sample"]
        outputs = full(x, sigma, feeds, more)
        kept[key] = _Kept(feeds, part, time, outputs[DEEP], None if known is None else (known.time, known.deep))
        while len(kept) > BRANCHES:
            kept.pop(next(iter(kept)))
        return outputs["out_sample"]

    return predict
