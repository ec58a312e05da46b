"""How activations are distributed: observed while the float graph runs on recorded inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pieces import Feeds, Pieces, Values

Array = NDArray[np.float32]
SAMPLE = 100_000
"""Values kept of each tensor over all runs, at an even stride from a place that changes with the run."""
SHRINK = tuple(float(shrink) for shrink in np.geomspace(1.0, 0.2, 20))
"""Where clipping is tried, as fractions of the largest and smallest value seen."""


@dataclass(frozen=True)
class Range:
    """Scale and zero point of a tensor in unsigned 8 bit: real = (stored - zero) × scale."""

    scale: float
    zero: int
    snr: float
    """In dB: what rounding and clipping leave of the tensor."""

    def round_trip(self, x: Array) -> Array:
        """`x` after being stored and read back."""
        stored = np.clip(np.rint(x / np.float32(self.scale)) + self.zero, 0, 255)
        return ((stored - self.zero) * np.float32(self.scale)).astype(np.float32)


@dataclass(frozen=True)
class Observed:
    """A tensor as it was seen over all runs."""

    values: Array
    """A sample of its elements."""
    channels: NDArray[np.int32]
    """The channel of each of them."""
    lows: Array
    """The smallest value of each channel; of a tensor without channels, one for all."""
    highs: Array
    """Likewise the largest."""
    means: Array
    """Likewise the mean."""

    @property
    def low(self) -> float:
        """The smallest value."""
        return float(self.lows.min())

    @property
    def high(self) -> float:
        """The largest value."""
        return float(self.highs.max())

    @property
    def peaks(self) -> Array:
        """The largest magnitude of each channel."""
        return np.maximum(-self.lows, self.highs)

    def divided(self, factors: Array) -> Observed:
        """The tensor with each channel divided by one of `factors`, all above 0."""
        values = (self.values / factors[self.channels]).astype(np.float32)
        return Observed(values, self.channels, self.lows / factors, self.highs / factors, self.means / factors)


def observe(graph: Pieces, names: Mapping[str, int | None], feeds: Sequence[Feeds]) -> tuple[dict[str, Observed], list[Values]]:
    """How the tensors `names`, which `graph` watches, are distributed over runs on `feeds`, and the outputs of each run.

    With each name comes the axis of its channels, or None where what they hold is not to be told apart.
    """
    parts: dict[str, list[Observed]] = {name: [] for name in names}
    count = max(1, SAMPLE // max(1, len(feeds)))
    states: list[Values] = [dict(feed) for feed in feeds]
    for place in range(len(graph)):
        for run, state in enumerate(states):
            states[run], seen = graph.step(place, state)
            for name, array in (seen | ({name: state[name] for name in names if name in state} if place == 0 else {})).items():
                parts[name].append(_sample(np.asarray(array, np.float32), run, names[name], count))
    graph.close()
    outputs = [{name: state[name] for name in graph.outputs} for state in states]
    return {name: _joined(found) for name, found in parts.items()}, outputs


def _sample(x: Array, run: int, axis: int | None, count: int) -> Observed:
    stride = max(1, x.size // count)
    places = np.arange(run % stride, x.size, stride)[:count]
    axes = tuple(other for other in range(x.ndim) if axis is None or other != axis % x.ndim)
    behind = 1 if axis is None else int(np.prod(x.shape[axis % x.ndim + 1 :], dtype=np.int64))
    channels = np.zeros(len(places), np.int32) if axis is None else (places // behind % x.shape[axis]).astype(np.int32)
    bounds = [np.atleast_1d(found).astype(np.float32) for found in (x.min(axis=axes), x.max(axis=axes), x.mean(axis=axes))]
    return Observed(x.reshape(-1)[places], channels, *bounds)


def _joined(parts: Sequence[Observed]) -> Observed:
    values, channels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "channels"))
    lows, highs, means = (np.stack([getattr(part, name) for part in parts]) for name in ("lows", "highs", "means"))
    return Observed(values, channels, lows.min(axis=0), highs.max(axis=0), means.mean(axis=0))


def fit(seen: Observed) -> Range:
    """The range with the least squared error on the sample, between coarse steps and clipped outliers; each end by itself."""
    values = seen.values
    low, high = min(0.0, seen.low), max(0.0, seen.high)
    best = _range(values, low, high)
    for end in ("high", "low", "high"):
        ends = [(low, high * shrink) if end == "high" else (low * shrink, high) for shrink in SHRINK]
        low, high, best = max(((one, other, _range(values, one, other)) for one, other in ends), key=lambda found: found[2].snr)
    return best


def _range(values: Array, low: float, high: float) -> Range:
    """The range from `low` to `high`, 0 among its steps, and what it leaves of `values`."""
    scale = float(np.float32(max(high - low, 1e-8) / 255.0))
    found = Range(scale, int(np.clip(round(-low / scale), 0, 255)), 0.0)
    power = float(np.mean(np.square(values, dtype=np.float64)))
    error = float(np.mean(np.square(values - found.round_trip(values), dtype=np.float64)))
    return Range(scale, found.zero, float(10.0 * np.log10(max(power, 1e-30) / max(error, 1e-30))))


def fit_weight(weight: Array, axis: int) -> tuple[NDArray[np.int8], Array]:
    """`weight` in signed 8 bit with a scale for each index of `axis`, each with the least squared error."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    largest = np.maximum(np.abs(rows).max(axis=1), 1e-12)
    best: NDArray[Any] = largest / 127.0
    least: NDArray[Any] = np.full(len(rows), np.inf)
    for shrink in np.linspace(1.0, 0.7, 7):
        scale = (largest * shrink / 127.0).astype(np.float32)
        stored = np.clip(np.rint(rows / scale[:, None]), -127, 127)
        error = np.square(rows - stored * scale[:, None]).sum(axis=1)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    scale: Array = best.astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    stored = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    return stored, scale
