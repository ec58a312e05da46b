"""From the float graphs of a bundle to what is published: each component in its precision, and through the gate."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import msgspec
import numpy as np
import onnx_ir as ir

from ..models.manifest import Component, Precision, Target, Tensor
from . import enlarge, equalize, graph, half, parity, quantize, ranges, recipe, residual, sensitivity, write
from .calibrate import Feeds, open_graph, size
from .layers import Layer, layers
from .pieces import Pieces, Values
from .quantize import Form, Row
from .recipe import Kind
from .targets import FORMS

CHECKED = 8
"""Recorded inputs on which a graph is compared with float, evenly spread over all."""
MEASURED = 2
"""Recorded inputs on which the effect of each layer is measured; one where weights are large."""
ATTEMPTS = 8
"""Graphs that are made at most until the bar is met with no more layers in float than it takes."""
SIDES: Mapping[str, int] = MappingProxyType({"vae_decoder": 32, "tiny_decoder": 32, "vae_encoder": 256})
"""Side of the part of a picture on which half precision is judged, in pixels of what the component takes: whole ones take gigabytes."""
RANGES = "ranges.onnx"
"""The graph in float32 that gives the ranges of its tensors as well, beside that graph while half precision is made of it."""
ROUNDED = "rounded.onnx"
"""The graph in float32 that rounds as half precision does, beside the one in half precision while that is judged."""
_BETTER: Mapping[Kind, Kind] = MappingProxyType({"int4": "weights", "int8": "weights", "weights": "half"})
_INTEGERS = frozenset({"int4", "int8", "weights"})


@dataclass(frozen=True)
class Lowered:
    """A component in its final precision."""

    component: Component
    rows: tuple[Row, ...]
    note: str = ""
    """What the user should know."""


@dataclass(frozen=True)
class _Job:
    """All that making a graph again with other kinds takes."""

    floats: Path
    folder: Path
    scales: Mapping[str, ranges.Array]
    factors: Mapping[str, ranges.Array]
    sizes: Mapping[str, residual.Sizes]
    calibration: quantize.Calibration
    form: Form | None
    checked: Sequence[Feeds]
    expected: Sequence[Values]

    def make(self, kinds: Callable[[str], Kind]) -> tuple[parity.Parity, list[Row]]:
        """Writes the graph with these kinds, and compares it."""
        plain = equalize.apply(write.load(self.floats), self.scales)
        sizes = residual.still(plain, kinds, self.sizes)
        plain = residual.apply(plain, sizes)
        model, rows = quantize.quantize(plain, kinds, self.calibration, self.form)
        write.save(equalize.keep(model, {**self.factors, **residual.factors(sizes)}), self.folder)
        return parity.compare(Pieces(self.folder, open_graph), self.checked, self.expected), rows


def lower(
    name: str,
    precision: Precision,
    target: Target,
    float_folder: Path,
    folder: Path,
    work: Path,
    feeds: Sequence[Feeds],
    made: Component,
    bar: float,
) -> Lowered:
    """Writes the component in `float_folder` into `folder` in `precision`, in the form that `target` likes; `feeds` are what it
    was given when pictures were drawn, `work` a folder for what is between.

    Raises:
        NumericalError: below `bar` (dB), whatever is tried.
    """
    for leftover in (folder, work):
        shutil.rmtree(leftover, ignore_errors=True)
    if precision == "fp16":
        return to_fp16(name, float_folder, folder, feeds, made, bar)
    form = FORMS.get(target)
    if form is not None:
        return to_integers(name, float_folder, folder, feeds, made, bar, form, precision)
    between = work / "int4"
    four = to_integers(name, float_folder, between, feeds, made, bar, None, precision)
    halved = to_fp16(name, between, folder, feeds, four.component, parity.BARS["fp16"])
    if not folder.exists():
        between.replace(folder)
    shutil.rmtree(work, ignore_errors=True)
    return replace(four, note=halved.note)


def to_integers(
    name: str,
    float_folder: Path,
    folder: Path,
    feeds: Sequence[Feeds],
    made: Component,
    bar: float,
    form: Form | None,
    precision: Precision = "int8",
) -> Lowered:
    """Writes the component in `float_folder` with 8-bit (or 4-bit) layers into `folder`; with no `form`, 4-bit weights and
    else float. `feeds` are what it was given when pictures were drawn.

    Where the result is below `bar` (dB), or pictures below what the recipe says, the layers that cost most at the output get more
    bits: float arithmetic, and in the end 16-bit weights.

    Raises:
        NumericalError: below the bar even so.
    """
    plain = write.load(float_folder)
    found = layers(plain)
    elements = sum(layer.elements for layer in found)
    kinds: dict[str, Kind] = {layer.name: recipe.kind(name, layer.name, elements, precision) for layer in found}
    if form is None:
        kinds = {layer.name: "int4" if quantize.kind_of(layer, kinds.__getitem__) == "int4" else "float" for layer in found}
    checked = feeds[:: max(1, len(feeds) // CHECKED)]
    watched = quantize.wanted_tensors(plain, kinds.__getitem__) | equalize.watched(plain)
    seen, outputs = ranges.observe(Pieces(float_folder, open_graph, watched), watched, feeds if watched else checked)
    expected = outputs[:: max(1, len(feeds) // CHECKED)] if watched else outputs
    scales = equalize.scales(plain, seen)
    sizes = residual.sizes(plain, kinds.__getitem__, seen)
    calibration = quantize.Calibration(residual.divided(plain, equalize.divided(plain, seen, scales), sizes))
    job = _Job(float_folder, folder, scales, equalize.factors(plain, scales), sizes, calibration, form, checked, expected)
    compared, rows = job.make(kinds.__getitem__)
    before: dict[str, Kind] = {row.layer: row.kind for row in rows}
    pictures = name in recipe.PSNR
    costs = _costs(job, found, rows, feeds, made.inputs, small=pictures or size(float_folder) >= sensitivity.LARGE)
    if pictures:
        bar = max(bar, _bar_of_pictures(expected, recipe.PSNR[name]))
    if compared.db < bar:
        compared, rows = _promoted(job, before, rows, costs, compared, bar, to_float=form is None)
    worst = sorted(costs, key=lambda layer: -costs[layer].noise)
    parity.require(name, precision, compared, bar, worst[:5])
    if form == "operators":
        made_of: ir.Model = cast("Any", ir).load(folder / write.GRAPH)
        passes = (quantize.split_products, enlarge.rounded_first)  # now, since effects are measured on whole layers
        write.save_beside(graph.apply(made_of, passes), folder / write.GRAPH)
    if not any(row.kind in _INTEGERS for row in rows):
        precision = "fp16" if any(row.kind == "half" for row in rows) else "fp32"
    return Lowered(msgspec.structs.replace(made, precision=precision, parity_db=compared.db), _told(rows, costs, before))


def _bar_of_pictures(expected: Sequence[Values], psnr: float) -> float:
    """The SNR in dB from which each picture, of which `expected` are some in float, is within `psnr`."""
    power = max(float(np.mean(np.square(picture, dtype=np.float64))) for values in expected for picture in values.values())
    return psnr - 10 * math.log10(4.0 / max(power, 1e-12))  # from black to white it is 2


def _costs(
    job: _Job, found: Sequence[Layer], rows: Sequence[Row], feeds: Sequence[Feeds], inputs: Mapping[str, Tensor], *, small: bool
) -> dict[str, sensitivity.Cost]:
    """What each layer with integer weights costs at the output, and what it works; on `small` parts of pictures, where that suffices."""
    lossy = {row.layer: row.snr or 0.0 for row in rows if row.kind in _INTEGERS}
    measured = sorted((layer for layer in found if layer.name in lossy), key=lambda layer: lossy[layer.name])[: sensitivity.MOST]
    count = 1 if size(job.floats) >= sensitivity.LARGE else MEASURED
    places = [len(feeds) * (2 * number + 1) // (2 * count) for number in range(count)]
    chosen = [sensitivity.cut(feeds[place], inputs) if small else feeds[place] for place in sorted(set(places))]
    return sensitivity.costs(job.floats, job.folder, measured, job.factors, chosen, open_graph)


def _promoted(
    job: _Job,
    kinds: Mapping[str, Kind],
    rows: list[Row],
    costs: Mapping[str, sensitivity.Cost],
    compared: parity.Parity,
    bar: float,
    *,
    to_float: bool,
) -> tuple[parity.Parity, list[Row]]:
    """The graph with as many of `_steps` gone as the bar takes, hardly more; below the bar if all of them do not suffice."""
    steps = _steps(rows, costs, to_float=to_float)
    left = [sum(cost.noise for cost in costs.values())]
    for name, _ in steps:
        left.append(max(left[-1] - (costs[name].noise if name in costs else 0.0), 0.0))
    low, high, here = 0, len(steps) + 1, 0  # known to be below the bar; known, or hoped, to reach it
    for _ in range(ATTEMPTS):
        budget = 10 ** (-bar / 10) * left[here] / max(10 ** (-compared.db / 10), 1e-30)  # as the last graph was off from the sum
        wanted = next((number for number in range(low + 1, len(left)) if left[number] <= budget), len(steps))
        here = wanted if low < wanted < high else max(low + 1, (low + min(high, len(steps))) // 2)
        if here > len(steps):
            break
        compared, rows = job.make(_after(kinds, steps[:here]))
        low, high = (low, here) if compared.db >= bar else (here, high)
        if high - low <= max(1, len(steps) // 50):
            break
    if here != high:
        here = min(high, len(steps))
        compared, rows = job.make(_after(kinds, steps[:here]))
    return compared, rows


def _steps(rows: Sequence[Row], costs: Mapping[str, sensitivity.Cost], *, to_float: bool) -> list[tuple[str, Kind]]:
    """One layer a step gets more bits: those first that bring most noise for the work that float arithmetic makes slower;
    where none is left, weights go to 16 bit. With `to_float` there is one step for each, straight to float.
    """

    def first(name: str) -> float:
        return -costs[name].noise / costs[name].work if name in costs else 0.0

    kinds: dict[str, Kind] = {row.layer: row.kind for row in rows}
    steps: list[tuple[str, Kind]] = []
    for stage in ({"int4", "int8"}, {"weights"}):
        for name in sorted((name for name, kind in kinds.items() if kind in stage), key=first):
            kinds[name] = "float" if to_float else _BETTER[kinds[name]]
            steps.append((name, kinds[name]))
    return steps


def _after(kinds: Mapping[str, Kind], steps: Sequence[tuple[str, Kind]]) -> Callable[[str], Kind]:
    changed: dict[str, Kind] = {**kinds, **dict(steps)}
    return changed.__getitem__


def _told(rows: Sequence[Row], costs: Mapping[str, sensitivity.Cost], before: Mapping[str, Kind]) -> tuple[Row, ...]:
    """`rows` with the measured effect, and with what the recipe gave where the layer got more."""
    return tuple(
        replace(
            row,
            effect=round(sensitivity.db(costs[row.layer].noise), 1) if row.layer in costs else None,
            recipe=before[row.layer] if before[row.layer] != row.kind else None,
        )
        for row in rows
    )


def to_fp16(name: str, float_folder: Path, folder: Path, feeds: Sequence[Feeds], made: Component, bar: float) -> Lowered:
    """Writes the component in half precision into `folder`, with float32 where `feeds` made numbers that half cannot hold.

    Where NaN or Inf comes out, or less than `bar` (dB), the component stays float32, nothing is written, and the note says so.
    """
    plain, open_plainly = write.load(float_folder), partial(open_graph, fold=False)
    side = SIDES.get(name)
    checked = [feed if side is None else sensitivity.cut(feed, made.inputs, side) for feed in feeds[:: max(1, len(feeds) // CHECKED)]]
    given = [value.name or "" for value in plain.graph.outputs]
    write.save_beside(write.sharing(half.with_ranges(plain), float_folder), float_folder / RANGES)
    outputs = Pieces(float_folder, open_plainly, file=RANGES).run_all(checked)
    (float_folder / RANGES).unlink()
    large = half.too_large(outputs)
    expected = [{name: run[name] for name in given} for run in outputs]
    write.save(half.to_half(write.load(float_folder), large), folder)
    runs = parity.compare(Pieces(folder, open_plainly), checked, expected)  # with less rounding than a GPU's, but the graph itself
    rounded = write.sharing(half.rounded(write.load(float_folder), large), folder)
    write.save_beside(rounded, folder / ROUNDED)
    found = parity.compare(Pieces(folder, open_plainly, file=ROUNDED), checked, expected)
    (folder / ROUNDED).unlink()
    if min(found.db, runs.db) < bar:
        shutil.rmtree(folder)
        what = "NaN or Inf" if found.db == -parity.PERFECT else f"{found.db:.1f} dB against float32"
        return Lowered(made, (), f"{name}: half precision gives {what}, expected at least {bar:.0f} dB: it stays float32")
    note = f"{name}: {len(large)} tensors are too large for half precision: what makes and reads them stays float32" if large else ""
    return Lowered(msgspec.structs.replace(made, precision="fp16", parity_db=found.db), (), note)
