"""Convert the float graphs of a bundle to their published precision, and check each against the gate."""

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

from ...models.manifest import Component, Precision, Target, Tensor
from ..graphs import edit, parity, save
from ..graphs.run_in_pieces import Pieces, Values
from ..passes import half_precision
from ..runtime_bridge import Feeds, open_graph, size
from . import quantize, ranges, recipe, residual_scaling, resize_int8, sensitivity, smooth_quant
from .layers import Layer, layers
from .quantize import FORMS, Form, Row
from .ranges import Array
from .recipe import Kind

CHECKED = 8
"""Number of recorded inputs, evenly spread, on which a graph is compared with its float graph."""
MEASURED = 2
"""Number of recorded inputs on which the effect of each layer is measured; one for large components."""
ATTEMPTS = 8
"""Maximum number of graphs built in the search for the fewest layers that need a higher precision."""
SIDES: Mapping[str, int] = MappingProxyType({"vae_decoder": 32, "tiny_decoder": 32, "vae_encoder": 256})
"""Side in input pixels of the crops on which half precision is compared with float32: whole images take gigabytes."""
RANGES = "ranges.onnx"
"""Temporary file beside the float32 graph: the same graph with the ranges of its tensors as outputs."""
ROUNDED = "rounded.onnx"
"""Temporary file beside the float16 graph: a float32 graph with the same rounding."""
_NEXT_HIGHER: Mapping[Kind, Kind] = MappingProxyType({"int4": "weights", "int8": "weights", "weights": "half"})
"""The next higher precision of a layer."""
_INTEGERS = frozenset({"int4", "int8", "weights"})


@dataclass(frozen=True)
class Lowered:
    """A component in its final precision."""

    component: Component
    rows: tuple[Row, ...]
    note: str = ""
    """Warnings."""


@dataclass(frozen=True)
class _Builder:
    """Builds a component's graph for any choice of layer precisions, from one calibration."""

    floats: Path
    folder: Path
    feed_forward_scales: Mapping[str, Array]
    feed_forward_factors: Mapping[str, Array]
    residual_scales: Mapping[str, residual_scaling.Scales]
    calibration: quantize.Calibration
    form: Form | None
    checked: Sequence[Feeds]
    expected: Sequence[Values]
    """Outputs of the float graph for `checked`."""

    def build(self, kinds: Callable[[str], Kind]) -> tuple[parity.Parity, list[Row]]:
        """Write the graph with the layer precisions `kinds`; return its comparison with float and the report."""
        model = smooth_quant.apply(save.load(self.floats), self.feed_forward_scales)
        residual_scales = residual_scaling.remaining(model, kinds, self.residual_scales)
        model = residual_scaling.apply(model, residual_scales)
        model, rows = quantize.quantize(model, kinds, self.calibration, self.form)
        factors = {**self.feed_forward_factors, **residual_scaling.factors(residual_scales)}
        save.save(smooth_quant.store_factors(model, factors), self.folder)
        return parity.compare(Pieces(self.folder, open_graph), self.checked, self.expected), rows


def lower(
    name: str,
    precision: Precision,
    target: Target,
    float_folder: Path,
    folder: Path,
    work: Path,
    feeds: Sequence[Feeds],
    component: Component,
    bar: float,
) -> Lowered:
    """Convert the component in `float_folder` to `precision` for `target` and write it to `folder`.

    `feeds` are recorded inputs of the component, `work` is a folder for temporary files.

    Raises:
        NumericalError: no choice of layer precisions reaches `bar` (dB).
    """
    for leftover in (folder, work):
        shutil.rmtree(leftover, ignore_errors=True)
    if precision == "fp16":
        return to_fp16(name, float_folder, folder, feeds, component, bar)
    form = FORMS.get(target)
    if form is not None:
        return to_integers(name, float_folder, folder, feeds, component, bar, form, precision)
    int4_folder = work / "int4"
    int4 = to_integers(name, float_folder, int4_folder, feeds, component, bar, None, precision)
    if int4.component.precision == "fp32":  # no layer became int4
        shutil.rmtree(work)
        return to_fp16(name, float_folder, folder, feeds, component, parity.BARS["fp16"])
    half = to_fp16(name, int4_folder, folder, feeds, int4.component, parity.BARS["fp16"])
    if not folder.exists():
        int4_folder.replace(folder)
    shutil.rmtree(work, ignore_errors=True)
    return replace(int4, note=half.note)


def to_integers(
    name: str,
    float_folder: Path,
    folder: Path,
    feeds: Sequence[Feeds],
    component: Component,
    bar: float,
    form: Form | None,
    precision: Precision = "int8",
) -> Lowered:
    """Convert the component in `float_folder` to int8 (or int4) layers and write it to `folder`.

    Without a `form`, layers are int4 or float. `feeds` are recorded inputs of the component. If the result is below `bar` (dB), or images
    are below the recipe's PSNR, the layers that cost the most quality get a higher precision, up to float16 weights.

    Raises:
        NumericalError: the result is still below the bar.
    """
    model = save.load(float_folder)
    candidates = layers(model)
    kinds = _recipe_kinds(name, candidates, precision, form)
    builder = _calibrated(model, kinds, float_folder, folder, feeds, form)
    compared, rows = builder.build(kinds.__getitem__)
    initial: dict[str, Kind] = {row.layer: row.kind for row in rows}
    has_images = name in recipe.PSNR
    costs = _costs(builder, candidates, rows, feeds, component.inputs, small=has_images or size(float_folder) >= sensitivity.LARGE)
    if has_images:
        bar = max(bar, _bar_of_images(builder.expected, recipe.PSNR[name]))
    if compared.db < bar:
        compared, rows = _promoted(builder, initial, rows, costs, compared, bar, to_float=form is None)
    most_costly = sorted(costs, key=lambda layer: -costs[layer].noise)
    parity.require(name, precision, compared, bar, most_costly[:5])
    if form == "operators":
        quantized: ir.Model = cast("Any", ir).load(folder / save.GRAPH)
        passes = (quantize.split_products, resize_int8.quantize_before_resize)  # last: costs are measured on whole layers
        save.save_beside(edit.apply(quantized, passes), folder / save.GRAPH)
    if not any(row.kind in _INTEGERS for row in rows):
        precision = "fp16" if any(row.kind == "half" for row in rows) else "fp32"
    return Lowered(msgspec.structs.replace(component, precision=precision, parity_db=compared.db), _with_effects(rows, costs, initial))


def _recipe_kinds(name: str, candidates: Sequence[Layer], precision: Precision, form: Form | None) -> dict[str, Kind]:
    """Return the recipe's precision of each layer; without a `form`, int4 or float."""
    elements = sum(layer.elements for layer in candidates)
    kinds: dict[str, Kind] = {layer.name: recipe.kind(name, layer.name, elements, precision) for layer in candidates}
    if form is None:
        kinds = {layer.name: "int4" if quantize.kind_of(layer, kinds.__getitem__) == "int4" else "float" for layer in candidates}
    return kinds


def _calibrated(
    model: ir.Model, kinds: Mapping[str, Kind], float_folder: Path, folder: Path, feeds: Sequence[Feeds], form: Form | None
) -> _Builder:
    """Run the float graph on `feeds`, observe the ranges that `kinds` needs, and return a builder for `folder`."""
    checked = feeds[:: max(1, len(feeds) // CHECKED)]
    watched = quantize.wanted_tensors(model, kinds.__getitem__) | smooth_quant.watched(model)
    observed, outputs = ranges.observe(Pieces(float_folder, open_graph, watched), watched, feeds if watched else checked)
    expected = outputs[:: max(1, len(feeds) // CHECKED)] if watched else outputs
    feed_forward_scales = smooth_quant.scales(model, observed)
    residual_scales = residual_scaling.scales(model, kinds.__getitem__, observed)
    observed = smooth_quant.divided(model, observed, feed_forward_scales)
    observed = residual_scaling.divided(model, observed, residual_scales)
    return _Builder(
        floats=float_folder,
        folder=folder,
        feed_forward_scales=feed_forward_scales,
        feed_forward_factors=smooth_quant.factors(model, feed_forward_scales),
        residual_scales=residual_scales,
        calibration=quantize.Calibration(observed),
        form=form,
        checked=checked,
        expected=expected,
    )


def _bar_of_images(expected: Sequence[Values], psnr: float) -> float:
    """Return the SNR in dB that guarantees `psnr` for every image; `expected` are images of the float graph."""
    power = max(float(np.mean(np.square(image, dtype=np.float64))) for values in expected for image in values.values())
    return psnr - 10 * math.log10(4.0 / max(power, 1e-12))  # the peak-to-peak range is 2


def _costs(
    builder: _Builder,
    candidates: Sequence[Layer],
    rows: Sequence[Row],
    feeds: Sequence[Feeds],
    inputs: Mapping[str, Tensor],
    *,
    small: bool,
) -> dict[str, sensitivity.Cost]:
    """Measure what each layer with integer weights costs at the output; with `small`, on crops of images."""
    snrs = {row.layer: row.snr or 0.0 for row in rows if row.kind in _INTEGERS}
    measured = sorted((layer for layer in candidates if layer.name in snrs), key=lambda layer: snrs[layer.name])[: sensitivity.MAX_LAYERS]
    count = 1 if size(builder.floats) >= sensitivity.LARGE else MEASURED
    indices = [len(feeds) * (2 * number + 1) // (2 * count) for number in range(count)]
    chosen = [sensitivity.crop(feeds[index], inputs) if small else feeds[index] for index in sorted(set(indices))]
    return sensitivity.costs(builder.floats, builder.folder, measured, builder.feed_forward_factors, chosen, open_graph)


def _promoted(
    builder: _Builder,
    kinds: Mapping[str, Kind],
    rows: list[Row],
    costs: Mapping[str, sensitivity.Cost],
    compared: parity.Parity,
    bar: float,
    *,
    to_float: bool,
) -> tuple[parity.Parity, list[Row]]:
    """Build the graph with as few `_steps` as reach the bar; below the bar if all of them are not enough."""
    steps = _steps(rows, costs, to_float=to_float)
    noise_after = [sum(cost.noise for cost in costs.values())]
    for name, _ in steps:
        noise_after.append(max(noise_after[-1] - (costs[name].noise if name in costs else 0.0), 0.0))
    low, high, count = 0, len(steps) + 1, 0  # `low` steps are too few; `high` are enough, or one more than all
    for _ in range(ATTEMPTS):
        # The sum of costs is an estimate: correct it by its error for the last graph.
        budget = 10 ** (-bar / 10) * noise_after[count] / max(10 ** (-compared.db / 10), 1e-30)
        estimate = next((number for number in range(low + 1, len(noise_after)) if noise_after[number] <= budget), len(steps))
        count = estimate if low < estimate < high else max(low + 1, (low + min(high, len(steps))) // 2)
        if count > len(steps):
            break
        compared, rows = builder.build(_after(kinds, steps[:count]))
        low, high = (low, count) if compared.db >= bar else (count, high)
        if high - low <= max(1, len(steps) // 50):
            break
    if count != high:
        count = min(high, len(steps))
        compared, rows = builder.build(_after(kinds, steps[:count]))
    return compared, rows


def _steps(rows: Sequence[Row], costs: Mapping[str, sensitivity.Cost], *, to_float: bool) -> list[tuple[str, Kind]]:
    """Return (layer, higher precision) in the order in which layers are promoted.

    Layers with integer arithmetic or int4 weights come first, those with the most noise per multiplication first; then int8 weights become
    float16. With `to_float`, each layer has one step, straight to float.
    """

    def key(name: str) -> float:
        return -costs[name].noise / costs[name].work if name in costs else 0.0

    kinds: dict[str, Kind] = {row.layer: row.kind for row in rows}
    steps: list[tuple[str, Kind]] = []
    for stage in ({"int4", "int8"}, {"weights"}):
        for name in sorted((name for name, kind in kinds.items() if kind in stage), key=key):
            kinds[name] = "float" if to_float else _NEXT_HIGHER[kinds[name]]
            steps.append((name, kinds[name]))
    return steps


def _after(kinds: Mapping[str, Kind], steps: Sequence[tuple[str, Kind]]) -> Callable[[str], Kind]:
    changed: dict[str, Kind] = {**kinds, **dict(steps)}
    return changed.__getitem__


def _with_effects(rows: Sequence[Row], costs: Mapping[str, sensitivity.Cost], initial: Mapping[str, Kind]) -> tuple[Row, ...]:
    """Add to `rows` the measured effects, and the recipe's precision of layers that got a higher one."""
    return tuple(
        replace(
            row,
            effect=round(sensitivity.db(costs[row.layer].noise), 1) if row.layer in costs else None,
            recipe=initial[row.layer] if initial[row.layer] != row.kind else None,
        )
        for row in rows
    )


def to_fp16(name: str, float_folder: Path, folder: Path, feeds: Sequence[Feeds], component: Component, bar: float) -> Lowered:
    """Convert the component to half precision and write it to `folder`; tensors that exceed float16 on `feeds` stay float32.

    If the result has NaN or Inf, or is below `bar` (dB), the component stays float32: nothing is written, and the note gives the reason.
    """
    open_unfolded = partial(open_graph, fold=False)
    side = SIDES.get(name)
    checked = [feed if side is None else sensitivity.crop(feed, component.inputs, side) for feed in feeds[:: max(1, len(feeds) // CHECKED)]]
    expected, too_large = _float_outputs(float_folder, checked)
    save.save(half_precision.to_half(save.load(float_folder), too_large), folder)
    run = parity.compare(Pieces(folder, open_unfolded), checked, expected)  # less rounding than on a GPU, but the published graph
    rounded = save.share_weights(half_precision.rounded(save.load(float_folder), too_large), folder)
    save.save_beside(rounded, folder / ROUNDED)
    simulated = parity.compare(Pieces(folder, open_unfolded, file=ROUNDED), checked, expected)
    (folder / ROUNDED).unlink()
    if min(simulated.db, run.db) < bar:
        shutil.rmtree(folder)
        result = "NaN or Inf" if simulated.db == -parity.PERFECT else f"{simulated.db:.1f} dB against float32"
        return Lowered(component, (), f"{name}: half precision gives {result}, expected at least {bar:.0f} dB: it stays float32")
    note = f"{name}: {len(too_large)} tensors are too large for half precision; their nodes stay float32" if too_large else ""
    return Lowered(msgspec.structs.replace(component, precision="fp16", parity_db=simulated.db), (), note)


def _float_outputs(float_folder: Path, feeds: Sequence[Feeds]) -> tuple[list[Values], list[str]]:
    """Return the outputs of the float32 graph on `feeds`, and the names of the tensors that are too large for float16."""
    model = save.load(float_folder)
    names = [value.name or "" for value in model.graph.outputs]
    save.save_beside(save.share_weights(half_precision.with_ranges(model), float_folder), float_folder / RANGES)
    outputs = Pieces(float_folder, partial(open_graph, fold=False), file=RANGES).run_all(feeds)
    (float_folder / RANGES).unlink()
    return [{name: run[name] for name in names} for run in outputs], half_precision.too_large(outputs)
