"""Half precision: graphs of float32 become float16 inside, with float32 where half cannot hold the numbers.

Inputs and outputs stay float32, so that nobody outside has to know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .fused import FLOAT_PLACES, KERNELS, kernel
from .graph import changed_weight, dims, tidy, typed

LIMIT = 16_384.0
"""Largest magnitude seen in float32 that a tensor may have in half: a quarter of what half can hold, for what was not seen."""
_SINGLE = {"Range", "ConstantOfShape", "Trilu"}
"""What makes places and masks."""
_OTHER = {"Shape", "ArgMax", "Equal", "Greater", "Less", "Not", "And", "Or", "NonZero", "Size"}
"""Operators that give no floats."""
_WATCHED = {"Conv", "MatMul", "Add", "Mul", "Softmax", "MultiHeadAttention", "InstanceNormalization", *KERNELS}


def with_ranges(model: ir.Model) -> ir.Model:
    """`model` with the smallest and the largest value of each tensor that decides what can be half, as outputs `NAME.low`, `NAME.high`.

    So no such tensor has to be kept: those of a picture of 512 × 512 take 10 GB together.
    """
    for node in list(model.graph):
        for value in node.outputs if kernel(node) in _WATCHED else ():
            if value.name:
                for kind, end in (("ReduceMin", "low"), ("ReduceMax", "high")):
                    reduced = ir.node(kind, [value], {"keepdims": 0})
                    reduced.outputs[0].name = f"{value.name}.{end}"
                    typed(reduced.outputs[0], ())
                    model.graph.insert_after(node, [reduced])
                    model.graph.outputs.append(reduced.outputs[0])
    return model


def too_large(runs: Iterable[Mapping[str, NDArray[Any]]]) -> list[str]:
    """Tensors that do not fit into half, by what graphs `with_ranges` gave."""
    peaks: dict[str, float] = {}
    for outputs in runs:
        for name, value in outputs.items():
            tensor, _, end = name.rpartition(".")
            if end in {"low", "high"} and tensor:
                peaks[tensor] = float(np.maximum(peaks.get(tensor, 0.0), np.abs(value)))
    return [tensor for tensor, peak in peaks.items() if not peak < LIMIT]


def to_half(model: ir.Model, too_large: Collection[str] = ()) -> ir.Model:
    """`model` in half precision but for what makes or reads the tensors `too_large`, and for the sines of the timestep.

    Timesteps go up to 1000, times a frequency: half would lose the phase.
    """
    floats = _floats(model)
    single = _single(model, floats, set(too_large))
    casts: dict[tuple[int, ir.DataType], ir.Value] = {}
    halves = _halve_weights(model, floats, single)
    for node in list(model.graph):
        for place, value in enumerate(node.inputs):
            goal = ir.DataType.FLOAT if _is_single(node, place, single) else ir.DataType.FLOAT16
            if value is not None and value in floats and (value in halves) != (goal == ir.DataType.FLOAT16):
                node.replace_input_with(place, _cast(model, value, goal, casts))
        for value in node.outputs:
            if value in floats and node not in single:
                halves.add(value)
                value.dtype = ir.DataType.FLOAT16
    for place, value in enumerate(model.graph.outputs):
        if value in halves:
            name, value.name = value.name, f"{value.name}_half"
            whole = _cast(model, value, ir.DataType.FLOAT, casts)
            whole.name, whole.shape = name, value.shape
            model.graph.outputs[place] = whole
    return tidy(model)


def rounded(model: ir.Model, too_large: Collection[str] = ()) -> ir.Model:
    """`model` in float32 with every tensor rounded to half precision that `to_half` makes half: what a GPU computes.

    ONNX Runtime's CPU provider runs half graphs in float32 from end to end, which hides what half precision loses. Weights are
    stored in half, as `to_half` stores them, so that both graphs can share a data file.
    """
    floats = _floats(model)
    single = _single(model, floats, set(too_large))
    made: dict[int, ir.Value] = {}
    halved = _halve_weights(model, floats, single)
    for node in list(model.graph):
        if node in single:
            continue
        for place, value in enumerate(node.inputs):
            if value in halved:
                whole = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
                model.graph.insert_before(node, whole)
                node.replace_input_with(place, whole.outputs[0])
            elif value is not None and value in floats and not _is_single(node, place, single):
                node.replace_input_with(place, _rounded(model, value, made))
    return model


def _halve_weights(model: ir.Model, floats: set[ir.Value], single: set[ir.Node]) -> set[ir.Value]:
    """Makes the weights half that no node wants in float32; gives these."""
    found: set[ir.Value] = set()
    for value in model.graph.initializers.values():
        if value in floats and not any(_is_single(use.node, use.idx, single) for use in value.uses()):
            changed_weight(
                value, dims(value.const_value), lambda data: np.clip(data, -65504, 65504).astype(np.float16), ir.DataType.FLOAT16
            )
            found.add(value)
    return found


def _rounded(model: ir.Model, value: ir.Value, made: dict[int, ir.Value]) -> ir.Value:
    """`value` cast to half and back, once for all that ask."""
    if id(value) not in made:
        down = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16.value})
        up = ir.node("Cast", [down.outputs[0]], {"to": ir.DataType.FLOAT.value})
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(next(iter(model.graph)), (down, up))
        else:
            model.graph.insert_after(producer, (down, up))
        made[id(value)] = up.outputs[0]
    return made[id(value)]


def _floats(model: ir.Model) -> set[ir.Value]:
    """Every value of the graph that is float32."""
    found = {value for value in (*model.graph.inputs, *model.graph.initializers.values()) if value.dtype == ir.DataType.FLOAT}
    for node in model.graph:
        data = node.inputs[0] if node.inputs else None
        if node.op_type in _OTHER:
            continue
        if node.op_type == "Cast":
            is_float = node.attributes["to"].value == ir.DataType.FLOAT.value
        else:
            is_float = node.op_type == "ConstantOfShape" or data in found
        if is_float:
            found.update(node.outputs)
    return found


def _single(model: ir.Model, floats: set[ir.Value], too_large: set[str]) -> set[ir.Node]:
    """Nodes that stay float32: sines and what leads to them, what makes a tensor that is too large, and what reads one."""
    found: set[ir.Node] = set()
    time: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        if node.op_type in {"Sin", "Cos"} or any(use.node in time for value in node.outputs for use in value.uses()):
            time.add(node)
        values = [value for value in (*node.outputs, *node.inputs) if value is not None]
        large = any((value.name or "") in too_large for value in values)
        if node in time or large or node.op_type in _SINGLE or not any(value in floats for value in values):
            found.add(node)
    return found


def _is_single(node: ir.Node, place: int, single: set[ir.Node]) -> bool:
    """Whether input number `place` of `node` is float32: Resize's factors are, whatever it resizes, and what a fused kernel wants so."""
    return node in single or (node.op_type == "Resize" and place > 0) or place in FLOAT_PLACES.get(kernel(node), ())


def _cast(model: ir.Model, value: ir.Value, dtype: ir.DataType, casts: dict[tuple[int, ir.DataType], ir.Value]) -> ir.Value:
    """`value` in `dtype`, cast once for all that ask."""
    key = (id(value), dtype)
    if key not in casts:
        node = ir.node("Cast", [value], {"to": dtype.value})
        made = value.producer()
        if made is None:
            model.graph.insert_before(next(iter(model.graph)), node)
        else:
            model.graph.insert_after(made, node)
        node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
        casts[key] = node.outputs[0]
    return casts[key]
