"""Eight bits and four: graphs of float32 become graphs of int8 weights and, where the recipe says so, 8-bit arithmetic.

Activations are unsigned with one range a tensor, weights signed with one scale an output channel (the pair that every
x86 and Arm kernel likes). What a layer gives is float again: Conv through its own output range, MatMul directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from . import graph, nbits
from .layers import Layer, layers
from .ranges import Array, Observed, Range, fit, fit_weight
from .recipe import Kind

Form = Literal["operators", "qdq"]
"""`operators`: QLinearConv and MatMulIntegerToFloat, ready for ORT's CPU provider; `qdq`: pairs of QuantizeLinear and
DequantizeLinear around float operators, for providers that fuse them their own way (OpenVINO)."""
MINIMUM = 1024
"""Weights with fewer elements stay float: nothing is won."""


@dataclass(frozen=True)
class Row:
    """A line of the report."""

    layer: str
    kind: Kind
    bytes: int
    snr: float | None
    """In dB: the layer's own output against float, from what is lost of its input, weight and output."""
    effect: float | None = None
    """In dB, measured: the output of the whole graph against float if this layer alone were as the recipe says."""
    recipe: Kind | None = None
    """What the recipe gave to the layer, where it then got more for the bar's sake."""


def wanted_tensors(model: ir.Model, kinds: Callable[[str], Kind]) -> dict[str, int | None]:
    """Names of the activations whose ranges are needed, with the axis of their channels."""
    names: dict[str, int | None] = {}
    for layer in layers(model):
        if kind_of(layer, kinds) == "int8":
            is_conv = layer.node.op_type == "Conv"
            names.setdefault(layer.input.name or "", 1 if is_conv else -1)
            if is_conv:
                names.setdefault(layer.output.name or "", 1)
    return names


def kind_of(layer: Layer, kinds: Callable[[str], Kind]) -> Kind:
    """What `layer` becomes where `kinds` are wanted: not every operator can have every kind."""
    wanted = kinds(layer.name)
    if layer.elements < MINIMUM:
        return "float"
    if wanted == "int4" and (layer.node.op_type != "MatMul" or layer.weight_shape[0] % nbits.BLOCK):
        wanted = "int8" if layer.node.op_type == "Conv" else "weights"
    if wanted == "int8" and layer.node.op_type not in {"Conv", "MatMul"}:
        wanted = "weights"
    if wanted == "weights" and layer.node.op_type in {"Conv", "Gemm"}:
        return "half"  # ORT would unpack 8-bit weights of these again in every call
    return wanted


@dataclass(frozen=True)
class Rounded:
    """A weight in 8 bit."""

    stored: NDArray[np.int8]
    scale: Array
    """One for each output channel."""
    snr: float
    """In dB: what rounding leaves of the weight."""
    lost: Array | None
    """What rounding takes from the mean output of each channel, where the mean input is known (Nagel et al. 2019, section 4.2)."""


@dataclass(frozen=True)
class Calibration:
    """What is known about activations and weights; kept from one attempt to the next, since finding it takes longest."""

    seen: Mapping[str, Observed]
    """The activations of `wanted_tensors`, by name."""
    ranges: dict[str, Range] = field(default_factory=dict[str, Range])
    weights: dict[str, Rounded] = field(default_factory=dict[str, Rounded])

    def range_of(self, value: ir.Value) -> Range:
        """Scale and zero point of an activation."""
        name = value.name or ""
        if name not in self.ranges:
            self.ranges[name] = fit(self.seen[name])
        return self.ranges[name]

    def rounded(self, layer: Layer) -> Rounded:
        """The layer's weight in 8 bit."""
        if layer.name not in self.weights:
            self.weights[layer.name] = _rounded(layer, self.seen.get(layer.input.name or ""))
        return self.weights[layer.name]


def _rounded(layer: Layer, seen: Observed | None) -> Rounded:
    assert layer.weight.const_value is not None
    real: Array = layer.weight.const_value.numpy()
    stored, scale = fit_weight(real, layer.axis)
    shape = [1] * real.ndim
    shape[layer.axis] = -1
    error: Array = np.asarray(real - stored.astype(np.float32) * scale.reshape(shape), np.float32)
    power, noise = float(np.square(real, dtype=np.float64).sum()), float(np.square(error, dtype=np.float64).sum())
    lost: Array | None = None
    if seen is not None and layer.node.op_type != "Gather":
        lost = seen.means @ error if layer.axis == 1 else error.reshape(*error.shape[:2], -1).sum(axis=2) @ seen.means
    return Rounded(stored, scale, float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-30))), lost)


def quantize(
    model: ir.Model, kinds: Callable[[str], Kind], calibration: Calibration, form: Form | None = "operators"
) -> tuple[ir.Model, list[Row]]:
    """`model` with layers in few bits as `kinds` says, by layer name; with no `form`, 8-bit arithmetic must not be among them."""
    rows: list[Row] = []
    for layer in layers(model):
        wanted = kind_of(layer, kinds)
        if wanted in {"float", "half"}:
            if wanted == "half":
                _half(model, layer)
            rows.append(Row(layer.name, wanted, (4 if wanted == "float" else 2) * layer.elements, None))
            continue
        if wanted == "int4":
            rows.append(Row(layer.name, wanted, *nbits.lower(model, layer, on_cpu=form is not None)))
            continue
        assert form is not None
        rounded = calibration.rounded(layer)
        weight, losses = _Weight(model, layer, rounded), [rounded.snr]
        if wanted == "weights":
            _weight_only(model, layer, weight)
        else:
            tensors = (layer.input, layer.output) if layer.node.op_type == "Conv" else (layer.input,)
            losses += [calibration.range_of(value).snr for value in tensors]
            (_conv if layer.node.op_type == "Conv" else _matmul)(model, layer, weight, calibration, form)
        snr = -10 * np.log10(sum(10 ** (-loss / 10) for loss in losses))
        rows.append(Row(layer.name, wanted, layer.elements + 4 * len(rounded.scale), round(float(snr), 1)))
    model.graph.opset_imports.setdefault(graph.MICROSOFT, 1)
    return graph.tidy(model), rows


class _Weight:
    """Initializers for a weight in 8 bit."""

    def __init__(self, model: ir.Model, layer: Layer, rounded: Rounded) -> None:
        name = layer.weight.name or ""
        self.rounded = rounded
        self.stored = graph.initializer(model, f"{name}_quantized", rounded.stored)
        self.scales = graph.initializer(model, f"{name}_scale", rounded.scale)
        self.zeros = graph.initializer(model, f"zeros_int8_{len(rounded.scale)}", np.zeros(len(rounded.scale), np.int8))


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
    indices = layer.input
    column = graph.initializer(model, f"{layer.weight.name}_scale_column", weight.rounded.scale[:, None])
    rows = ir.node("Gather", [weight.stored, indices], {"axis": 0})
    real = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT.value})
    scales = ir.node("Gather", [column, indices], {"axis": 0})
    product = ir.node("Mul", [real.outputs[0], scales.outputs[0]], name=layer.node.name)
    graph.replace(layer.node, [rows, real, scales, product], product.outputs[0])


def _scalars(model: ir.Model, name: str, found: Range) -> tuple[ir.Value, ir.Value]:
    """Initializers for the scale and the zero point of the tensor `name`."""
    scale = graph.initializer(model, f"{name}_scale", np.array(found.scale, np.float32))
    return scale, graph.initializer(model, f"{name}_zero", np.array(found.zero, np.uint8))


def _stored_input(model: ir.Model, layer: Layer, calibration: Calibration) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The activation in 8 bit, its scale and zero point; made once for all layers that read the same tensor."""
    value, name = layer.input, layer.input.name or ""
    scale, zero = _scalars(model, name, calibration.range_of(value))
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


def _corrected_bias(layer: Layer, rounded: Rounded) -> Array:
    """The bias, and what rounding the weights takes from the mean output."""
    bias: Any = np.zeros(len(rounded.scale)) if layer.bias is None or layer.bias.const_value is None else layer.bias.const_value.numpy()
    return (bias.reshape(-1) + (0 if rounded.lost is None else rounded.lost)).astype(np.float32)


def _conv(model: ir.Model, layer: Layer, weight: _Weight, calibration: Calibration, form: Form) -> None:
    stored, scale, zero = _stored_input(model, layer, calibration)
    out_scale, out_zero = _scalars(model, layer.output.name or "", calibration.range_of(layer.output))
    bias = _corrected_bias(layer, weight.rounded)
    step = np.float32(calibration.range_of(layer.input).scale) * weight.rounded.scale
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


def _matmul(model: ir.Model, layer: Layer, weight: _Weight, calibration: Calibration, form: Form) -> None:
    stored, scale, zero = _stored_input(model, layer, calibration)
    bias = graph.initializer(model, f"{layer.name}.bias_corrected", _corrected_bias(layer, weight.rounded))
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


def split_products(model: ir.Model) -> ir.Model:
    """A product that is split into equal parts behind it, as in gated feed-forwards → a product for each part of the weight.

    Bit for bit the same, without a copy of what is often the largest activation. The weight stays whole in the file, under its name:
    it is parted when the graph is opened, or in each call where nothing is computed ahead, which costs less than the copy did.
    """
    for split in graph.nodes_of(model, "Split"):
        product = graph.producer(split.inputs[0], "MatMulIntegerToFloat")
        if product is None or len(product.outputs[0].uses()) != 1 or graph.attribute(split, "axis", 0) != -1 or len(split.inputs) > 1:
            continue
        parts = len(split.outputs)
        cuts = {
            place: ir.node("Split", [product.inputs[place]], {"axis": axis, "num_outputs": parts}, num_outputs=parts)
            for place, axis in ((1, 1), (3, 0), (5, 0), (6, 0))  # weight, its scales and zeros, bias
        }
        products: list[ir.Node] = []
        for part in range(parts):
            inputs = [cuts[place].outputs[part] if place in cuts else value for place, value in enumerate(product.inputs)]
            products.append(ir.node("MatMulIntegerToFloat", inputs, domain=graph.MICROSOFT, name=f"{product.name}.{part}"))
        graph.replace(split, [*cuts.values(), *products], *(node.outputs[0] for node in products))
    return graph.tidy(model)
