"""Half precision: convert float32 graphs to float16, except where values exceed float16.

Inputs and outputs stay float32, so the rest of the pipeline does not change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graphs.edit import change_weight, dims, set_float, tidy
from .contrib_functions import FLOAT_INPUTS, KERNELS, kernel

LIMIT = 16_384.0
"""Largest magnitude that a float16 tensor may have during calibration: a quarter of float16's range, as a margin for other inputs."""
_FLOAT32 = {"Range", "ConstantOfShape", "Trilu"}
"""Operators that stay float32: they produce indices and masks."""
_NOT_FLOAT = {"Shape", "ArgMax", "Equal", "Greater", "Less", "Not", "And", "Or", "NonZero", "Size"}
"""Operators without float outputs."""
_OBSERVED = {"Conv", "MatMul", "Add", "Mul", "Softmax", "MultiHeadAttention", "InstanceNormalization", *KERNELS}
"""Operators whose outputs are checked for large values."""


def with_ranges(model: ir.Model) -> ir.Model:
    """Add outputs `NAME.low` and `NAME.high`, minimum and maximum of each tensor whose magnitude decides what can be float16.

    Returning the tensors themselves would take 10 GB for an image of 512 × 512.
    """
    for node in list(model.graph):
        for value in node.outputs if kernel(node) in _OBSERVED else ():
            if value.name:
                for kind, end in (("ReduceMin", "low"), ("ReduceMax", "high")):
                    reduced = ir.node(kind, [value], {"keepdims": 0})
                    reduced.outputs[0].name = f"{value.name}.{end}"
                    set_float(reduced.outputs[0], ())
                    model.graph.insert_after(node, [reduced])
                    model.graph.outputs.append(reduced.outputs[0])
    return model


def too_large(runs: Iterable[Mapping[str, NDArray[Any]]]) -> list[str]:
    """Return the names of the tensors that exceed `LIMIT`, or have NaN, in the outputs of runs of a `with_ranges` graph."""
    peaks: dict[str, float] = {}
    for outputs in runs:
        for name, value in outputs.items():
            tensor, _, end = name.rpartition(".")
            if end in {"low", "high"} and tensor:
                peaks[tensor] = float(np.maximum(peaks.get(tensor, 0.0), np.abs(value)))
    return [tensor for tensor, peak in peaks.items() if not peak < LIMIT]


def to_half(model: ir.Model, too_large: Collection[str] = ()) -> ir.Model:
    """Convert `model` to float16, except nodes that compute or read the tensors `too_large`, and the sines of the timestep.

    Timesteps go up to 1000 and are multiplied by a frequency: float16 would lose the phase.
    """
    floats = _floats(model)
    kept = _float32_nodes(model, floats, set(too_large))
    casts: dict[tuple[int, ir.DataType], ir.Value] = {}
    halves = _halve_weights(model, floats, kept)
    for node in list(model.graph):
        for number, value in enumerate(node.inputs):
            dtype = ir.DataType.FLOAT if _is_float32(node, number, kept) else ir.DataType.FLOAT16
            if value is not None and value in floats and (value in halves) != (dtype == ir.DataType.FLOAT16):
                node.replace_input_with(number, _cast(model, value, dtype, casts))
        for value in node.outputs:
            if value in floats and node not in kept:
                halves.add(value)
                value.dtype = ir.DataType.FLOAT16
    for number, value in enumerate(model.graph.outputs):
        if value in halves:
            name, value.name = value.name, f"{value.name}_half"
            widened = _cast(model, value, ir.DataType.FLOAT, casts)
            widened.name, widened.shape = name, value.shape
            model.graph.outputs[number] = widened
    return tidy(model)


def rounded(model: ir.Model, too_large: Collection[str] = ()) -> ir.Model:
    """Round to float16, in the float32 graph `model`, every tensor that `to_half` converts: this simulates a GPU.

    ONNX Runtime's CPU provider runs float16 graphs in float32 from end to end, which hides the rounding. Weights are stored in float16, as
    `to_half` stores them, so that both graphs can share a data file.
    """
    floats = _floats(model)
    kept = _float32_nodes(model, floats, set(too_large))
    round_trips: dict[int, ir.Value] = {}
    half_weights = _halve_weights(model, floats, kept)
    for node in list(model.graph):
        if node in kept:
            continue
        for number, value in enumerate(node.inputs):
            if value in half_weights:
                widened = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
                model.graph.insert_before(node, widened)
                node.replace_input_with(number, widened.outputs[0])
            elif value is not None and value in floats and not _is_float32(node, number, kept):
                node.replace_input_with(number, _round_trip(model, value, round_trips))
    return model


def _halve_weights(model: ir.Model, floats: set[ir.Value], kept: set[ir.Node]) -> set[ir.Value]:
    """Convert the weights that no node reads in float32 to float16; return them."""
    halves: set[ir.Value] = set()
    for value in model.graph.initializers.values():
        if value in floats and not any(_is_float32(use.node, use.idx, kept) for use in value.uses()):
            change_weight(value, dims(value.const_value), lambda data: np.clip(data, -65504, 65504).astype(np.float16), ir.DataType.FLOAT16)
            halves.add(value)
    return halves


def _round_trip(model: ir.Model, value: ir.Value, cache: dict[int, ir.Value]) -> ir.Value:
    """Return `value` cast to float16 and back; the casts are shared through `cache`."""
    if id(value) not in cache:
        down = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16.value})
        up = ir.node("Cast", [down.outputs[0]], {"to": ir.DataType.FLOAT.value})
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(next(iter(model.graph)), (down, up))
        else:
            model.graph.insert_after(producer, (down, up))
        cache[id(value)] = up.outputs[0]
    return cache[id(value)]


def _floats(model: ir.Model) -> set[ir.Value]:
    """Return every float32 value of the graph."""
    found = {value for value in (*model.graph.inputs, *model.graph.initializers.values()) if value.dtype == ir.DataType.FLOAT}
    for node in model.graph:
        data = node.inputs[0] if node.inputs else None
        if node.op_type in _NOT_FLOAT:
            continue
        if node.op_type == "Cast":
            is_float = node.attributes["to"].value == ir.DataType.FLOAT.value
        else:
            is_float = node.op_type == "ConstantOfShape" or data in found
        if is_float:
            found.update(node.outputs)
    return found


def _float32_nodes(model: ir.Model, floats: set[ir.Value], too_large: set[str]) -> set[ir.Node]:
    """Return the nodes that stay float32: sines and the nodes before them, and nodes that compute or read a tensor that is too large."""
    found: set[ir.Node] = set()
    time: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        if node.op_type in {"Sin", "Cos"} or any(use.node in time for value in node.outputs for use in value.uses()):
            time.add(node)
        values = [value for value in (*node.outputs, *node.inputs) if value is not None]
        large = any((value.name or "") in too_large for value in values)
        if node in time or large or node.op_type in _FLOAT32 or not any(value in floats for value in values):
            found.add(node)
    return found


def _is_float32(node: ir.Node, number: int, kept: set[ir.Node]) -> bool:
    """Whether input `number` of `node` stays float32: any input of a node in `kept`, factors of a Resize, float inputs of a kernel."""
    return node in kept or (node.op_type == "Resize" and number > 0) or number in FLOAT_INPUTS.get(kernel(node), ())


def _cast(model: ir.Model, value: ir.Value, dtype: ir.DataType, casts: dict[tuple[int, ir.DataType], ir.Value]) -> ir.Value:
    """Return `value` cast to `dtype`; the cast is shared through `casts`."""
    key = (id(value), dtype)
    if key not in casts:
        node = ir.node("Cast", [value], {"to": dtype.value})
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(next(iter(model.graph)), node)
        else:
            model.graph.insert_after(producer, node)
        node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
        casts[key] = node.outputs[0]
    return casts[key]
