"""Run half of an autoencoder piece by piece on full-width bands of rows: the whole image in a fraction of the memory.

`export/subgraphs/vae_bands.py` cuts the graph at its group normalizations, whose mean and variance come from the whole tensor. A band
includes the few rows of its neighbours that convolutions need; the output of those rows is dropped. There are no seams at any band height.

Tensors between pieces are stored as bands, and a band is freed as soon as no piece needs it. A tensor that is computed from int8 tensors is
stored as those, with its own sums.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.manifest import Bands, Graph, Norm

Array = NDArray[Any]
Call = Callable[[str, Mapping[str, Array]], Mapping[str, Array]]
"""(name of the piece, inputs) → outputs."""


@dataclass
class _Memory:
    """A buffer that bands share: memory that is new to the process costs twice as much as copying."""

    buffer: Array = field(default_factory=lambda: np.empty(0, np.uint8))

    def of(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an uninitialized array of that shape."""
        size = math.prod(shape) * dtype.itemsize
        if self.buffer.size < size:
            self.buffer = np.empty(size, np.uint8)
        return self.buffer[:size].view(dtype).reshape(shape)


@dataclass
class _Rows:
    """A tensor (batch, channels, rows, columns) stored as bands of rows; the first bands may have been freed."""

    bands: list[Array] = field(default_factory=list[Array])
    first: int = 0
    """The index of the first row that is still stored."""

    @property
    def count(self) -> int:
        return self.first + sum(band.shape[2] for band in self.bands)

    def take(self, start: int, stop: int, memory: _Memory) -> Array:
        """Return rows `start` to `stop`, contiguous: a stored band itself, or a copy in `memory`."""
        starts = [*accumulate((band.shape[2] for band in self.bands), initial=self.first)]
        if (start, stop) in pairwise(starts):
            return self.bands[starts.index(start)]
        batch, channels, _, columns = self.bands[0].shape
        taken = memory.of((batch, channels, stop - start, columns), self.bands[0].dtype)
        for band, row in zip(self.bands, starts, strict=False):
            low, high = max(start, row), min(stop, row + band.shape[2])
            if low < high:
                taken[:, :, low - start : high - start] = band[:, :, low - row : high - row]
        return taken

    def drop(self, before: int) -> None:
        """Free the bands whose rows are all before row `before`."""
        while self.bands and self.first + self.bands[0].shape[2] <= before:
            self.first += self.bands.pop(0).shape[2]


@dataclass
class _Sums:
    """Sums of a tensor for each sample and channel, in float64, so that mean² can be subtracted from the mean square."""

    sums: Array = field(default_factory=lambda: np.zeros((1, 1)))
    squares: Array = field(default_factory=lambda: np.zeros((1, 1)))
    count: int = 0

    def add(self, sums: Array, squares: Array, columns: int) -> None:
        """Add the sums and squared sums of rows, (batch, channels, rows), of `columns` values each."""
        self.sums = self.sums + sums.sum(axis=2, dtype=np.float64)
        self.squares = self.squares + squares.sum(axis=2, dtype=np.float64)
        self.count += sums.shape[2] * columns

    def normalizing(self, norm: Norm) -> tuple[Array, Array]:
        """Scale and shift that normalize a tensor: (batch, channels, 1, 1) float32 each."""
        batch, channels = self.sums.shape
        size = self.count * channels // norm.groups
        mean, square = (one.reshape(batch, norm.groups, -1).sum(axis=2) / size for one in (self.sums, self.squares))
        scale = 1.0 / np.sqrt(np.maximum(square - mean * mean, 0.0) + norm.epsilon)
        both = (np.repeat(one, channels // norm.groups, axis=1)[:, :, None, None] for one in (scale, -mean * scale))
        first, second = (np.ascontiguousarray(one, dtype=np.float32) for one in both)
        return first, second


def run(pieces: Mapping[str, tuple[Graph, Bands]], call: Call, feeds: Mapping[str, Array], size: int) -> dict[str, Array]:
    """Run `pieces` in order on the inputs `feeds` and return every output of the whole graph by name.

    `size` is the approximate number of bytes of a piece's inputs and outputs for one band; int8 values count as two bytes, since they are
    float inside.
    """
    last = {name: piece for piece, (_, bands) in pieces.items() for name in bands.rows}
    tensors = {name: _Rows([array]) for name, array in feeds.items()}
    sums: dict[str, _Sums] = {}
    memory: defaultdict[int, _Memory] = defaultdict(_Memory)
    for piece, (graph, bands) in pieces.items():
        inputs = {name: tensors[name] for name in graph.inputs if name in bands.rows}
        made = {name: _Rows() for name in graph.outputs if name in bands.rows}
        given: dict[str, Array] = {}
        for name, norm in bands.norms.items():
            given[f"{name}.scale"], given[f"{name}.shift"] = sums.pop(name).normalizing(norm)
        columns = _columns(bands, inputs)
        for start, stop, top, bottom in _spans(graph, bands, inputs, size):
            band = {
                name: rows.take(top * bands.rows[name], bottom * bands.rows[name], memory[place])
                for place, (name, rows) in enumerate(inputs.items())
            }
            for name, rows in inputs.items():
                if last[name] == piece:
                    rows.drop((2 * stop - bottom) * bands.rows[name])  # rows above the start of the next band
            found = call(piece, {**band, **given})
            del band
            for name, times in bands.rows.items():
                own = slice((start - top) * times, (stop - top) * times)
                if name in made:
                    made[name].bands.append(found[name][:, :, own].copy())  # a view would keep the session's whole output alive
                if f"{name}.sums" in found:
                    parts = (found[f"{name}.sums"][..., own], found[f"{name}.squares"][..., own])
                    sums.setdefault(name, _Sums()).add(*parts, columns * times)
            del found
        tensors = {name: rows for name, rows in {**tensors, **made}.items() if last[name] != piece or name in made}
    return {name: rows.take(0, rows.count, _Memory()) for name, rows in tensors.items()}


def _columns(bands: Bands, inputs: Mapping[str, _Rows]) -> int:
    """Return the number of columns of the coarsest tensor."""
    name, rows = next(iter(inputs.items()))
    return rows.bands[0].shape[3] // bands.rows[name]


def _spans(graph: Graph, bands: Bands, inputs: Mapping[str, _Rows], size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each band: start and stop row of its output, then of its input, in rows of the coarsest tensor."""
    name, rows = next(iter(inputs.items()))
    units = rows.count // bands.rows[name]
    if bands.halo is None:
        yield 0, units, 0, units
        return
    columns = _columns(bands, inputs)
    tensors = {**graph.inputs, **graph.outputs}
    row = sum(
        max(np.dtype(tensor.dtype).itemsize, 2) * int(tensor.shape[1]) * columns * bands.rows[name] ** 2
        for name, tensor in tensors.items()
        if name in bands.rows
    )
    count = min(units, max(1, units * row // size))
    edges = [units * number // count for number in range(count + 1)]
    for start, stop in pairwise(edges):
        yield start, stop, max(start - bands.halo, 0), min(stop + bands.halo, units)
