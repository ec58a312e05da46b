"""Ranges of activations, observed while the float graph runs on recorded inputs, and scales of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graphs.run_in_pieces import Feeds, Pieces, Values

Array = NDArray[np.float32]
SAMPLE = 100_000
"""Elements sampled from each tensor over all runs, at an even stride with an offset that changes with the run."""
SHRINK = tuple(float(shrink) for shrink in np.geomspace(1.0, 0.2, 20))
"""Clipping candidates, as fractions of the largest and smallest observed values."""


@dataclass(frozen=True)
class Range:
    """Scale and zero point of a tensor in uint8: real = (stored - zero) × scale."""

    scale: float
    zero: int
    snr: float
    """In dB: the rounded and clipped tensor against the original."""

    def round_trip(self, x: Array) -> Array:
        """Return `x` after quantizing and dequantizing."""
        stored = np.clip(np.rint(x / np.float32(self.scale)) + self.zero, 0, 255)
        return ((stored - self.zero) * np.float32(self.scale)).astype(np.float32)


@dataclass(frozen=True)
class Observed:
    """Statistics of a tensor over all runs."""

    values: Array
    """A sample of its elements."""
    channels: NDArray[np.int32]
    """The channel of each element in the sample."""
    lows: Array
    """Smallest value per channel; a single one for a tensor without a channel axis."""
    highs: Array
    """Largest value per channel."""
    means: Array
    """Mean per channel."""

    @property
    def low(self) -> float:
        """The smallest value of all channels."""
        return float(self.lows.min())

    @property
    def high(self) -> float:
        """The largest value of all channels."""
        return float(self.highs.max())

    @property
    def peaks(self) -> Array:
        """The largest magnitude of each channel."""
        return np.maximum(-self.lows, self.highs)

    def divided(self, factors: Array) -> Observed:
        """Return the statistics after dividing each channel by its factor (above 0)."""
        values = (self.values / factors[self.channels]).astype(np.float32)
        return Observed(values, self.channels, self.lows / factors, self.highs / factors, self.means / factors)


def observe(graph: Pieces, names: Mapping[str, int | None], feeds: Sequence[Feeds]) -> tuple[dict[str, Observed], list[Values]]:
    """Run `graph` on `feeds`; return the statistics of the tensors `names`, which it watches, and the outputs of each run.

    `names` maps each tensor to the axis of its channels, or to None if channels need not be distinguished.
    """
    runs: dict[str, list[Observed]] = {name: [] for name in names}
    count = max(1, SAMPLE // max(1, len(feeds)))
    states: list[Values] = [dict(feed) for feed in feeds]
    for number in range(len(graph)):
        for run, state in enumerate(states):
            states[run], seen = graph.step(number, state)
            for name, array in (seen | ({name: state[name] for name in names if name in state} if number == 0 else {})).items():
                runs[name].append(_sample(np.asarray(array, np.float32), run, names[name], count))
    graph.close()
    outputs = [{name: state[name] for name in graph.outputs} for state in states]
    return {name: _merged(observed) for name, observed in runs.items()}, outputs


def _sample(x: Array, run: int, axis: int | None, count: int) -> Observed:
    """Return the statistics of `x` in one run, with at most `count` elements."""
    stride = max(1, x.size // count)
    indices = np.arange(run % stride, x.size, stride)[:count]
    axes = tuple(other for other in range(x.ndim) if axis is None or other != axis % x.ndim)
    inner = 1 if axis is None else int(np.prod(x.shape[axis % x.ndim + 1 :], dtype=np.int64))
    channels = np.zeros(len(indices), np.int32) if axis is None else (indices // inner % x.shape[axis]).astype(np.int32)
    per_channel = [np.atleast_1d(array).astype(np.float32) for array in (x.min(axis=axes), x.max(axis=axes), x.mean(axis=axes))]
    return Observed(x.reshape(-1)[indices], channels, *per_channel)


def _merged(runs: Sequence[Observed]) -> Observed:
    values, channels = (np.concatenate([getattr(run, name) for run in runs]) for name in ("values", "channels"))
    lows, highs, means = (np.stack([getattr(run, name) for run in runs]) for name in ("lows", "highs", "means"))
    return Observed(values, channels, lows.min(axis=0), highs.max(axis=0), means.mean(axis=0))


def fit(observed: Observed) -> Range:
    """Return the range with the least squared error on the sample: a trade between clipped outliers and step size, for each end in turn."""
    values = observed.values
    low, high = min(0.0, observed.low), max(0.0, observed.high)
    best = _range(values, low, high)
    for end in ("high", "low", "high"):
        ends = [(low, high * shrink) if end == "high" else (low * shrink, high) for shrink in SHRINK]
        low, high, best = max(((start, stop, _range(values, start, stop)) for start, stop in ends), key=lambda candidate: candidate[2].snr)
    return best


def _range(values: Array, low: float, high: float) -> Range:
    """Return the range from `low` to `high` that represents 0 exactly, with its SNR on `values`."""
    scale = float(np.float32(max(high - low, 1e-8) / 255.0))
    unrated = Range(scale, int(np.clip(round(-low / scale), 0, 255)), 0.0)
    power = float(np.mean(np.square(values, dtype=np.float64)))
    error = float(np.mean(np.square(values - unrated.round_trip(values), dtype=np.float64)))
    return Range(scale, unrated.zero, float(10.0 * np.log10(max(power, 1e-30) / max(error, 1e-30))))


def fit_weight(weight: Array, axis: int) -> tuple[NDArray[np.int8], Array]:
    """Round `weight` to int8 with one scale per index of `axis`, each with the least squared error; return the weight and the scales."""
    by_channel = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    largest = np.maximum(np.abs(by_channel).max(axis=1), 1e-12)
    best: NDArray[Any] = largest / 127.0
    least: NDArray[Any] = np.full(len(by_channel), np.inf)
    for shrink in np.linspace(1.0, 0.7, 7):
        scale = (largest * shrink / 127.0).astype(np.float32)
        stored = np.clip(np.rint(by_channel / scale[:, None]), -127, 127)
        error = np.square(by_channel - stored * scale[:, None]).sum(axis=1)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    scale: Array = best.astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    stored = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    return stored, scale
