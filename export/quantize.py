"""Eight bits: graphs of float32 become graphs of int8 weights and, where the recipe says so, 8-bit arithmetic.

Activations are unsigned with one range a tensor, weights signed with one scale an output channel (the pair that every
x86 and Arm kernel likes). What a layer gives is float again: Conv through its own output range, MatMul directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from . import graph
from .ranges import Array, Observed, Range, fit, fit_weight
from .recipe import Kind

Form = Literal["operators", "qdq"]
"""`operators`: QLinearConv and MatMulIntegerToFloat, ready for ORT's CPU provider; `qdq`: pairs of QuantizeLinear and
DequantizeLinear around float operators, for providers that fuse them their own way (OpenVINO)."""
MINIMUM = 1024
"""Weights with fewer elements stay float: nothing is won."""


@dataclass(frozen=True)
class Layer:
    """A Conv, MatMul, Gemm or Gather with a constant weight."""

    name: str
    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    axis: int
    """The weight's axis of output channels."""
    output: ir.Value
    """The float result, bias included."""

    @property
    def input(self) -> ir.Value:
        """The activation."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def elements(self) -> int:
        """Weights of the layer."""
        assert self.weight.const_value is not None
        return int(self.weight.const_value.size)


@dataclass(frozen=True)
class Row:
    """A line of the report."""

    layer: str
    kind: Kind
    bytes: int
    snr: float | None
    """In dB: the layer's own output against float, from what is lost of its input, weight and output."""


def layers(model: ir.Model) -> list[Layer]:
    """What can be quantized, in order."""
    found: list[Layer] = []
    for node in model.graph:
        place = 0 if node.op_type == "Gather" else 1
        if node.op_type not in {"Conv", "MatMul", "Gemm", "Gather"} or len(node.inputs) < 2:
            continue
        weight = node.inputs[place]
        if (
            weight is None
            or weight.const_value is None
            or weight.const_value.dtype != ir.DataType.FLOAT
            or len(weight.const_value.shape) < 2
        ):
            continue
        bias, output = node.inputs[2] if len(node.inputs) > 2 else None, node.outputs[0]
        if node.op_type == "MatMul":
            bias, output = _bias_after(node)
        axis = 1 if node.op_type == "MatMul" else 0
        found.append(Layer((weight.name or "").removesuffix(".weight"), node, weight, bias, axis, output))
    return found


def _bias_after(node: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    """The bias that the only user of a MatMul adds, and the sum; or None and the MatMul's own output."""
    users = list(node.outputs[0].uses())
    if len(users) == 1 and users[0].node.op_type == "Add" and users[0].idx == 0 and not node.outputs[0].is_graph_output():
        other = users[0].node.inputs[1]
        if other is not None and other.const_value is not None and len(other.const_value.shape) == 1:
            return other, users[0].node.outputs[0]
    return None, node.outputs[0]


def wanted_tensors(model: ir.Model, kinds: Callable[[str], Kind]) -> dict[str, int | None]:
    """Names of the activations whose ranges are needed, with the axis of their channels."""
    names: dict[str, int | None] = {}
    for layer in layers(model):
        if _kind(layer, kinds) == "int8":
            is_conv = layer.node.op_type == "Conv"
            names.setdefault(layer.input.name or "", 1 if is_conv else -1)
            if is_conv:
                names.setdefault(layer.output.name or "", 1)
    return names


def _kind(layer: Layer, kinds: Callable[[str], Kind]) -> Kind:
    wanted = kinds(layer.name)
    if layer.elements < MINIMUM:
        return "float"
    if wanted == "int8" and layer.node.op_type not in {"Conv", "MatMul"}:
        wanted = "weights"
    if wanted == "weights" and layer.node.op_type in {"Conv", "Gemm"}:
        return "half"  # ORT would unpack 8-bit weights of these again in every call
    return wanted


def quantize(
    model: ir.Model, kinds: Callable[[str], Kind], seen: Mapping[str, Observed], form: Form = "operators"
) -> tuple[ir.Model, list[Row]]:
    """`model` with 8-bit layers as `kinds` says, by layer name; `seen` has the activations of `wanted_tensors`."""
    ranges = {name: fit(observed) for name, observed in seen.items()}
    rows: list[Row] = []
    for layer in layers(model):
        wanted = _kind(layer, kinds)
        if wanted == "float":
            rows.append(Row(layer.name, wanted, 4 * layer.elements, None))
            continue
        if wanted == "half":
            _half(model, layer)
            rows.append(Row(layer.name, wanted, 2 * layer.elements, None))
            continue
        weight = _Weight(model, layer)
        snr = weight.snr
        if wanted == "weights":
            _weight_only(model, layer, weight)
        else:
            noise = [10 ** (-part / 10) for part in _losses(layer, weight, ranges)]
            snr = -10 * np.log10(sum(noise))
            (_conv if layer.node.op_type == "Conv" else _matmul)(model, layer, weight, seen, ranges, form)
        rows.append(Row(layer.name, wanted, layer.elements + 4 * len(weight.scale), round(float(snr), 1)))
    model.graph.opset_imports.setdefault(graph.MICROSOFT, 1)
    return graph.tidy(model), rows


def _losses(layer: Layer, weight: _Weight, ranges: Mapping[str, Range]) -> list[float]:
    names = [layer.input.name, layer.output.name] if layer.node.op_type == "Conv" else [layer.input.name]
    return [weight.snr, *(ranges[name or ""].snr for name in names)]


class _Weight:
    """The weight of a layer in 8 bit: initializers for the numbers and their scales."""

    def __init__(self, model: ir.Model, layer: Layer) -> None:
        assert layer.weight.const_value is not None
        real: Array = layer.weight.const_value.numpy()
        stored, self.scale = fit_weight(real, layer.axis)
        shape = [1] * real.ndim
        shape[layer.axis] = -1
        restored = stored.astype(np.float32) * self.scale.reshape(shape)
        self.error: Array = np.asarray(real - restored, np.float32)
        power, lost = float(np.square(real, dtype=np.float64).sum()), float(np.square(self.error, dtype=np.float64).sum())
        self.snr = 10 * np.log10(max(power, 1e-30) / max(lost, 1e-30))
        name = layer.weight.name or ""
        self.stored = graph.initializer(model, f"{name}_quantized", stored)
        self.scales = graph.initializer(model, f"{name}_scale", self.scale)
        self.zeros = graph.initializer(model, f"zeros_int8_{len(self.scale)}", np.zeros(len(self.scale), np.int8))


def _half(model: ir.Model, layer: Layer) -> None:
    """Stores the weight in 16 bit; the Cast is folded when the graph is opened (of a Gather, done for the rows found)."""
    old = layer.weight.const_value
    assert old is not None
    name = layer.weight.name or ""
    if name in model.graph.initializers and model.graph.initializers[name].dtype == ir.DataType.FLOAT16:
        return
    half = ir.LazyTensor(
        lambda: ir.tensor(old.numpy().astype(np.float16), name=name),
        dtype=ir.DataType.FLOAT16,
        shape=ir.Shape(old.shape.numpy()),
        name=name,
    )
    layer.weight.const_value, layer.weight.dtype = half, ir.DataType.FLOAT16
    cast = ir.node("Cast", [layer.weight], {"to": ir.DataType.FLOAT.value})
    if layer.node.op_type == "Gather":
        cast.replace_input_with(0, layer.node.outputs[0])
        layer.node.outputs[0].replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, layer.node.outputs[0])
        layer.node.outputs[0].dtype = ir.DataType.FLOAT16
        model.graph.insert_after(layer.node, cast)
        return
    model.graph.insert_before(layer.node, cast)
    for use in list(layer.weight.uses()):
        if use.node is not cast:
            use.node.replace_input_with(use.idx, cast.outputs[0])


def _weight_only(model: ir.Model, layer: Layer, weight: _Weight) -> None:
    if layer.node.op_type != "Gather":
        real = ir.node("DequantizeLinear", [weight.stored, weight.scales], {"axis": layer.axis})
        model.graph.insert_before(layer.node, real)
        layer.node.replace_input_with(1, real.outputs[0])
        return
    # Rows are looked up in 8 bit: the whole table never becomes float.
    indices = layer.node.inputs[1]
    column = graph.initializer(model, f"{layer.weight.name}_scale_column", weight.scale[:, None])
    rows = ir.node("Gather", [weight.stored, indices], {"axis": 0})
    real = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT.value})
    scales = ir.node("Gather", [column, indices], {"axis": 0})
    product = ir.node("Mul", [real.outputs[0], scales.outputs[0]], name=layer.node.name)
    graph.replace(layer.node, [rows, real, scales, product], product.outputs[0])


def _scalars(model: ir.Model, name: str, found: Range) -> tuple[ir.Value, ir.Value]:
    """Initializers for the scale and the zero point of the tensor `name`."""
    scale = graph.initializer(model, f"{name}_scale", np.array(found.scale, np.float32))
    return scale, graph.initializer(model, f"{name}_zero", np.array(found.zero, np.uint8))


def _stored_input(model: ir.Model, layer: Layer, ranges: Mapping[str, Range]) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The activation in 8 bit, its scale and zero point; made once for all layers that read the same tensor."""
    value, name = layer.input, layer.input.name or ""
    scale, zero = _scalars(model, name, ranges[name])
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear" and use.node.inputs[1] is scale:
            return use.node.outputs[0], scale, zero
    node = ir.node("QuantizeLinear", [value, scale, zero])
    made = value.producer()
    if made is None:
        model.graph.insert_before(next(iter(model.graph)), node)
    else:
        model.graph.insert_after(made, node)
    node.outputs[0].name = f"{name}_stored"
    return node.outputs[0], scale, zero


def _corrected_bias(layer: Layer, weight: _Weight, seen: Mapping[str, Observed]) -> Array:
    """The bias plus what rounding the weights takes from the mean output (Nagel et al. 2019, section 4.2)."""
    means = seen[layer.input.name or ""].channel_means
    bias: Any = (
        np.zeros(len(weight.scale), np.float32) if layer.bias is None or layer.bias.const_value is None else layer.bias.const_value.numpy()
    )
    lost = means @ weight.error if layer.axis == 1 else weight.error.sum(axis=(2, 3)) @ means
    return (bias.reshape(-1) + lost).astype(np.float32)


def _conv(model: ir.Model, layer: Layer, weight: _Weight, seen: Mapping[str, Observed], ranges: Mapping[str, Range], form: Form) -> None:
    stored, scale, zero = _stored_input(model, layer, ranges)
    name = layer.output.name or ""
    out_scale, out_zero = _scalars(model, name, ranges[name])
    bias = _corrected_bias(layer, weight, seen)
    step = np.float32(ranges[layer.input.name or ""].scale) * weight.scale
    whole = graph.initializer(
        model, f"{layer.name}.bias_quantized", np.clip(np.rint(bias / step), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    )
    attributes = [a for key, a in layer.node.attributes.items() if key != "auto_pad"]
    if form == "operators":
        inputs = [stored, scale, zero, weight.stored, weight.scales, weight.zeros, out_scale, out_zero, whole]
        conv = ir.Node("", "QLinearConv", inputs, attributes, name=layer.node.name)
        real = ir.node("DequantizeLinear", [conv.outputs[0], out_scale, out_zero])
        graph.replace(layer.node, [conv, real], real.outputs[0])
        return
    bias_scale = graph.initializer(model, f"{layer.name}.bias_scale", step.astype(np.float32))
    x = ir.node("DequantizeLinear", [stored, scale, zero])
    w = ir.node("DequantizeLinear", [weight.stored, weight.scales, weight.zeros], {"axis": 0})
    b = ir.node("DequantizeLinear", [whole, bias_scale], {"axis": 0})
    conv = ir.Node("", "Conv", [x.outputs[0], w.outputs[0], b.outputs[0]], attributes, name=layer.node.name)
    down = ir.node("QuantizeLinear", [conv.outputs[0], out_scale, out_zero])
    real = ir.node("DequantizeLinear", [down.outputs[0], out_scale, out_zero])
    graph.replace(layer.node, [x, w, b, conv, down, real], real.outputs[0])


def _matmul(model: ir.Model, layer: Layer, weight: _Weight, seen: Mapping[str, Observed], ranges: Mapping[str, Range], form: Form) -> None:
    stored, scale, zero = _stored_input(model, layer, ranges)
    bias = graph.initializer(model, f"{layer.name}.bias_corrected", _corrected_bias(layer, weight, seen))
    last = layer.output.producer()
    assert last is not None
    if form == "operators":
        inputs = [stored, weight.stored, scale, weight.scales, zero, weight.zeros, bias]
        product = ir.node("MatMulIntegerToFloat", inputs, domain=graph.MICROSOFT, name=layer.node.name)
        graph.replace(last, [product], product.outputs[0])
        return
    x = ir.node("DequantizeLinear", [stored, scale, zero])
    w = ir.node("DequantizeLinear", [weight.stored, weight.scales, weight.zeros], {"axis": 1})
    product = ir.node("MatMul", [x.outputs[0], w.outputs[0]], name=layer.node.name)
    total = ir.node("Add", [product.outputs[0], bias])
    graph.replace(last, [x, w, product, total], total.outputs[0])
