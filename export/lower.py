"""From the float graphs of a bundle to what is published: each component in its precision, and through the gate."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from ..models.manifest import Component, Precision
from . import equalize, half, parity, quantize, ranges, recipe, write
from .calibrate import Feeds, open_graph
from .layers import layers
from .quantize import Form
from .recipe import Kind

PROMOTED = 4
"""Layers that get a better kind at once while the bar is not met: a twenty-fourth of those that are left, at least so many."""
_BETTER: Mapping[Kind, Kind] = MappingProxyType({"int8": "weights", "weights": "half"})


@dataclass(frozen=True)
class Lowered:
    """A component in its final precision."""

    component: Component
    rows: tuple[quantize.Row, ...]
    note: str = ""
    """What the user should know."""


def to_int8(
    name: str, float_folder: Path, folder: Path, work: Path, feeds: Sequence[Feeds], made: Component, bar: float, form: Form
) -> Lowered:
    """Writes the component in `float_folder` with 8-bit layers into `folder`; `feeds` are what it was given when pictures were drawn.

    Where the result is below `bar` (dB), the layers that lose most go back to float arithmetic, and in the end to 16-bit weights.

    Raises:
        NumericalError: below the bar even so.
    """
    reference = open_graph(float_folder / write.GRAPH)
    checked = feeds[:: max(1, len(feeds) // 8)]
    expected = [reference.run(feed) for feed in checked]
    reference.close()
    plain = write.load(float_folder)
    elements = sum(layer.elements for layer in layers(plain))
    kinds: dict[str, Kind] = {layer.name: recipe.kind(name, layer.name, elements) for layer in layers(plain)}
    scales = equalize.scales(plain, feeds, work, open_graph)
    factors = equalize.factors(plain, scales)
    equalize.apply(plain, scales)
    wanted = quantize.wanted_tensors(plain, kinds.__getitem__)
    calibration = quantize.Calibration(ranges.observe(plain, wanted, feeds, work, open_graph) if wanted else {})
    while True:
        model, rows = quantize.quantize(equalize.apply(write.load(float_folder), scales), kinds.__getitem__, calibration, form)
        write.save(equalize.keep(model, factors), folder)
        found = parity.compare(open_graph(folder / write.GRAPH), checked, expected)
        weakest = _weakest(rows)
        if found.db >= bar or not weakest:
            break
        for row in weakest[: max(PROMOTED, len(weakest) // 24)]:
            kinds[row.layer] = _BETTER[row.kind]
    parity.require(name, "int8", found, bar, (row.layer for row in weakest[:5]))
    precision: Precision = "int8" if any(row.kind in {"int8", "weights"} for row in rows) else "fp16"
    return Lowered(msgspec.structs.replace(made, precision=precision, parity_db=found.db), tuple(rows))


def to_fp16(name: str, float_folder: Path, folder: Path, work: Path, feeds: Sequence[Feeds], made: Component, bar: float) -> Lowered:
    """Writes the component in half precision into `folder`, with float32 where `feeds` made numbers that half cannot hold.

    Where NaN or Inf comes out, or less than `bar` (dB), the component stays float32, nothing is written, and the note says so.
    """
    plain = write.load(float_folder)
    reference = open_graph(float_folder / write.GRAPH)
    checked = feeds[:: max(1, len(feeds) // 8)]
    expected = [reference.run(feed) for feed in checked]
    reference.close()
    seen = ranges.observe(plain, half.watched(plain), feeds, work, open_graph)
    large = [tensor for tensor, found in seen.items() if not max(-found.low, found.high) < half.LIMIT]
    write.save(half.rounded(write.load(float_folder), large), work)
    found = parity.compare(open_graph(work / write.GRAPH), checked, expected)
    write.save(half.to_half(write.load(float_folder), large), folder)
    runs = parity.compare(open_graph(folder / write.GRAPH), checked, expected)  # with less rounding, but the graph itself
    if min(found.db, runs.db) < bar:
        shutil.rmtree(folder)
        what = "NaN or Inf" if found.db == -parity.PERFECT else f"{found.db:.1f} dB against float32"
        return Lowered(made, (), f"{name}: half precision gives {what}, expected at least {bar:.0f} dB: it stays float32")
    note = f"{name}: {len(large)} tensors are too large for half precision: what makes and reads them stays float32" if large else ""
    return Lowered(msgspec.structs.replace(made, precision="fp16", parity_db=found.db), (), note)


def _weakest(rows: Sequence[quantize.Row]) -> list[quantize.Row]:
    """Layers that could get a better kind, those that lose most first; weight-only ones when nothing else is left."""
    for kind in _BETTER:
        found = sorted((row for row in rows if row.kind == kind), key=lambda row: row.snr or 0.0)
        if found:
            return found
    return []
