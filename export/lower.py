"""From the float graphs of a bundle to what is published: each component in its precision, and through the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..models.manifest import Component
from . import parity, quantize, ranges, recipe, write
from .calibrate import Feeds, open_graph
from .recipe import Kind

PROMOTED = 8
"""Layers that go back to float at once while the bar is not met: an eighth of those that are left, at least so many."""


@dataclass(frozen=True)
class Lowered:
    """A component in its final precision."""

    component: Component
    rows: tuple[quantize.Row, ...]


def to_int8(name: str, float_folder: Path, folder: Path, work: Path, feeds: Sequence[Feeds], made: Component, bar: float) -> Lowered:
    """Writes the component in `float_folder` with 8-bit layers into `folder`; `feeds` are what it was given when pictures were drawn.

    Where the result is below `bar` (dB), the layers that lose most go back to 8-bit weights with float arithmetic.

    Raises:
        NumericalError: below the bar even so.
    """
    reference = open_graph(float_folder / write.GRAPH)
    checked = feeds[:: max(1, len(feeds) // 8)]
    expected = [reference.run(feed) for feed in checked]
    reference.close()
    seen = _observed(name, float_folder, work, feeds)
    promoted: dict[str, Kind] = {}
    while True:
        model, rows = quantize.quantize(write.load(float_folder), lambda layer: promoted.get(layer) or recipe.kind(name, layer), seen)
        write.save(model, folder)
        found = parity.compare(open_graph(folder / write.GRAPH), checked, expected)
        weakest = sorted((row for row in rows if row.kind == "int8"), key=lambda row: row.snr or 0.0)
        if found.db >= bar or not weakest:
            break
        promoted |= dict.fromkeys((row.layer for row in weakest[: max(PROMOTED, len(weakest) // 8)]), "weights")
    parity.require(name, "int8", found, bar, (row.layer for row in weakest[:5]))
    return Lowered(msgspec.structs.replace(made, precision="int8", parity_db=found.db), tuple(rows))


def _observed(name: str, folder: Path, work: Path, feeds: Sequence[Feeds]) -> Mapping[str, ranges.Observed]:
    model = write.load(folder)
    wanted = quantize.wanted_tensors(model, lambda layer: recipe.kind(name, layer))
    return ranges.observe(model, wanted, feeds, work, open_graph) if wanted else {}
