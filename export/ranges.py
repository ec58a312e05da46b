"""How activations are distributed: observed while the float graph runs on recorded inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from . import write

Array = NDArray[np.float32]
Feeds = Mapping[str, NDArray[Any]]
KEPT = 4096
"""Values kept of each tensor and run, at an even stride from a place that changes with the run."""
FITTED = 50_000
"""Of these, so many are used to find a range."""
SHRINK = tuple(float(shrink) for shrink in np.geomspace(1.0, 0.2, 20))
"""Where clipping is tried, as fractions of the largest and smallest value seen."""


_Part = tuple[Array, float, float, Array, Array]


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
    low: float
    high: float
    channel_means: Array
    """Mean over everything but the channels."""
    channel_peaks: Array
    """Likewise the largest absolute value."""


def observe(
    model: ir.Model, names: Mapping[str, int | None], feeds: Sequence[Feeds], folder: Path, open_graph: Callable[[Path], Any]
) -> dict[str, Observed]:
    """Runs the float `model` on `feeds` and looks at the tensors `names` (with the axis of their channels, if means by channel are wanted).

    `folder` is for the graph with these tensors as outputs.
    """
    values = {value.name: value for node in model.graph for value in node.outputs} | {value.name: value for value in model.graph.inputs}
    own = list(model.graph.outputs)
    found: dict[str, list[_Part]] = {name: [] for name in names}
    outputs = [values[name] for name in names if not values[name].is_graph_output() and not values[name].is_graph_input()]
    try:
        model.graph.outputs.extend(outputs)
        write.save(model, folder)
    finally:
        for value in outputs:
            model.graph.outputs.remove(value)
    assert list(model.graph.outputs) == own
    session = open_graph(folder / write.GRAPH)
    for run, feed in enumerate(feeds):
        result = {**feed, **session.run(feed)}
        for name, axis in names.items():
            found[name].append(_sample(np.asarray(result[name], np.float32), run, axis))
    return {name: _joined(parts) for name, parts in found.items()}


def _sample(x: Array, run: int, axis: int | None) -> _Part:
    flat = x.reshape(-1)
    stride = max(1, flat.size // KEPT)
    axes = tuple(other for other in range(x.ndim) if axis is None or other != axis % x.ndim)
    return flat[run % stride :: stride][:KEPT].copy(), float(flat.min()), float(flat.max()), x.mean(axis=axes), np.abs(x).max(axis=axes)


def _joined(parts: Iterable[_Part]) -> Observed:
    values, lows, highs, means, peaks = zip(*parts, strict=True)
    return Observed(np.concatenate(values), min(lows), max(highs), np.mean(np.stack(means), axis=0), np.max(np.stack(peaks), axis=0))


def fit(seen: Observed) -> Range:
    """The range with the least squared error on the sample, between coarse steps and clipped outliers; each end by itself."""
    values = seen.values[:: max(1, seen.values.size // FITTED)]
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
