"""Quantize float32 graphs: int8 or int4 weights and, if the recipe chooses it, int8 arithmetic.

Activations are uint8 with one range per tensor, weights int8 with one scale per output channel (the fastest combination on x86 and Arm).
A layer returns float: a Conv through the range of its output, a MatMul directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...models.manifest import Target
from ..graphs import edit
from . import int4
from .layers import Layer, layers
from .ranges import Array, Observed, Range, fit, fit_weight
from .recipe import Kind

Form = Literal["operators", "qdq"]
"""`operators`: QLinearConv and MatMulIntegerToFloat, for ONNX Runtime's CPU provider. `qdq`: pairs of QuantizeLinear and DequantizeLinear
around float operators, for providers with fusions of their own (OpenVINO)."""
FORMS: Mapping[Target, Form] = MappingProxyType({"cpu": "operators", "openvino": "qdq"})
MINIMUM = 1024
"""Weights with fewer elements stay float: int8 would save nothing."""


@dataclass(frozen=True)
class Row:
    """The entry of one layer in the report."""

    layer: str
    kind: Kind
    bytes: int
    snr: float | None
    """In dB: the layer's output against float, estimated from the rounding of its input, weight and output."""
    effect: float | None = None
    """In dB, measured: the output of the whole graph against float, with only this layer in the recipe's precision."""
    recipe: Kind | None = None
    """The recipe's precision, if the layer got a higher one to meet the target."""


def wanted_tensors(model: ir.Model, kinds: Callable[[str], Kind]) -> dict[str, int | None]:
    """Return the activations whose ranges quantizing needs, by name, with their channel axes."""
    names: dict[str, int | None] = {}
    for layer in layers(model):
        if kind_of(layer, kinds) == "int8":
            is_conv = layer.node.op_type == "Conv"
            names.setdefault(layer.input.name or "", 1 if is_conv else -1)
            if is_conv:
                names.setdefault(layer.output.name or "", 1)
    return names


def kind_of(layer: Layer, kinds: Callable[[str], Kind]) -> Kind:
    """Return the precision that `kinds` chooses for `layer`, or the nearest one that its operator supports."""
    kind = kinds(layer.name)
    if layer.elements < MINIMUM:
        return "float"
    if kind == "int4" and (layer.node.op_type != "MatMul" or layer.weight_shape[0] % int4.BLOCK):
        kind = "int8" if layer.node.op_type == "Conv" else "weights"
    if kind == "int8" and layer.node.op_type not in {"Conv", "MatMul"}:
        kind = "weights"
    if kind == "weights" and layer.node.op_type in {"Conv", "Gemm"}:
        return "half"  # ONNX Runtime would convert int8 weights of these to float in every call
    return kind


@dataclass(frozen=True)
class Int8Weight:
    """A weight rounded to int8."""

    stored: NDArray[np.int8]
    scale: Array
    """One per output channel."""
    snr: float
    """In dB: the rounded weight against the original."""
    bias_error: Array | None
    """What rounding subtracts from each channel's mean output, if the mean input is known (Nagel et al. 2019, section 4.2)."""


@dataclass(frozen=True)
class Calibration:
    """Observed activations, fitted ranges and rounded weights; shared by all attempts, because computing them takes longest."""

    observed: Mapping[str, Observed]
    """The activations of `wanted_tensors`, by name."""
    ranges: dict[str, Range] = field(default_factory=dict[str, Range])
    weights: dict[str, Int8Weight] = field(default_factory=dict[str, Int8Weight])

    def range_of(self, value: ir.Value) -> Range:
        """Return scale and zero point of an activation."""
        name = value.name or ""
        if name not in self.ranges:
            self.ranges[name] = fit(self.observed[name])
        return self.ranges[name]

    def weight_of(self, layer: Layer) -> Int8Weight:
        """Return the weight of `layer` in int8."""
        if layer.name not in self.weights:
            self.weights[layer.name] = _round_weight(layer, self.observed.get(layer.input.name or ""))
        return self.weights[layer.name]


def _round_weight(layer: Layer, observed: Observed | None) -> Int8Weight:
    assert layer.weight.const_value is not None
    real: Array = layer.weight.const_value.numpy()
    stored, scale = fit_weight(real, layer.axis)
    shape = [1] * real.ndim
    shape[layer.axis] = -1
    error: Array = np.asarray(real - stored.astype(np.float32) * scale.reshape(shape), np.float32)
    power, noise = float(np.square(real, dtype=np.float64).sum()), float(np.square(error, dtype=np.float64).sum())
    bias_error: Array | None = None
    if observed is not None and layer.node.op_type != "Gather":
        means = observed.means
        bias_error = means @ error if layer.axis == 1 else error.reshape(*error.shape[:2], -1).sum(axis=2) @ means
    return Int8Weight(stored, scale, float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-30))), bias_error)


def quantize(
    model: ir.Model, kinds: Callable[[str], Kind], calibration: Calibration, form: Form | None = "operators"
) -> tuple[ir.Model, list[Row]]:
    """Convert the layers of `model` to the precisions that `kinds` chooses by name; return the model and the report.

    Without a `form`, `kinds` must not choose int8 or `weights`.
    """
    report = [_quantize_layer(model, layer, kind_of(layer, kinds), calibration, form) for layer in layers(model)]
    model.graph.opset_imports.setdefault(edit.MICROSOFT, 1)
    return edit.tidy(model), report


def _quantize_layer(model: ir.Model, layer: Layer, kind: Kind, calibration: Calibration, form: Form | None) -> Row:
    if kind == "float":
        return Row(layer.name, kind, 4 * layer.elements, None)
    if kind == "half":
        _half(model, layer)
        return Row(layer.name, kind, 2 * layer.elements, None)
    if kind == "int4":
        return Row(layer.name, kind, *int4.lower(model, layer, on_cpu=form is not None))
    assert form is not None
    rounded = calibration.weight_of(layer)
    weight, snrs = _Weight(model, layer, rounded), [rounded.snr]
    if kind == "weights":
        _weight_only(model, layer, weight)
    else:
        tensors = (layer.input, layer.output) if layer.node.op_type == "Conv" else (layer.input,)
        snrs += [calibration.range_of(value).snr for value in tensors]
        (_conv if layer.node.op_type == "Conv" else _matmul)(model, layer, weight, calibration, form)
    snr = -10 * np.log10(sum(10 ** (-db / 10) for db in snrs))
    return Row(layer.name, kind, layer.elements + 4 * len(rounded.scale), round(float(snr), 1))


class _Weight:
    """Initializers for a weight in int8.

    Each weight has zero points of its own, and every node names them: on processors without VNNI, ONNX Runtime turns weights and zero
    points into uint8 one node at a time (`session.x64quantprecision`), and fails where two nodes share zero points or one leaves them out.
    """

    def __init__(self, model: ir.Model, layer: Layer, rounded: Int8Weight) -> None:
        name = layer.weight.name or ""
        self.rounded = rounded
        self.stored = edit.initializer(model, f"{name}_quantized", rounded.stored)
        self.scales = edit.initializer(model, f"{name}_scale", rounded.scale)
        self.zeros = edit.initializer(model, f"{name}_zeros", np.zeros(len(rounded.scale), np.int8))


def _half(model: ir.Model, layer: Layer) -> None:
    """Store the weight in float16. Opening the graph folds the Cast; after a Gather, only the rows that were looked up are cast."""
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
    """Store the weight in int8 and compute in float."""
    if layer.node.op_type != "Gather":
        real = ir.node("DequantizeLinear", [weight.stored, weight.scales, weight.zeros], {"axis": layer.axis})
        model.graph.insert_before(layer.node, real)
        layer.node.replace_input_with(1, real.outputs[0])
        return
    # Look rows up in int8, so that the whole table is never converted to float.
    indices = layer.input
    column = edit.initializer(model, f"{layer.weight.name}_scale_column", weight.rounded.scale[:, None])
    rows = ir.node("Gather", [weight.stored, indices], {"axis": 0})
    real = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT.value})
    scales = ir.node("Gather", [column, indices], {"axis": 0})
    product = ir.node("Mul", [real.outputs[0], scales.outputs[0]], name=layer.node.name)
    edit.replace(layer.node, [rows, real, scales, product], product.outputs[0])


def _scalars(model: ir.Model, name: str, fitted: Range) -> tuple[ir.Value, ir.Value]:
    """Return initializers for the scale and the zero point of the tensor `name`."""
    scale = edit.initializer(model, f"{name}_scale", np.array(fitted.scale, np.float32))
    return scale, edit.initializer(model, f"{name}_zero", np.array(fitted.zero, np.uint8))


def _stored_input(model: ir.Model, layer: Layer, calibration: Calibration) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the activation in uint8, its scale and zero point; layers that read the same tensor share them."""
    value, name = layer.input, layer.input.name or ""
    scale, zero = _scalars(model, name, calibration.range_of(value))
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear" and use.node.inputs[1] is scale:
            return use.node.outputs[0], scale, zero
    node = ir.node("QuantizeLinear", [value, scale, zero])
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(next(iter(model.graph)), node)
    else:
        model.graph.insert_after(producer, node)
    node.outputs[0].name = f"{name}_stored"
    return node.outputs[0], scale, zero


def _corrected_bias(layer: Layer, rounded: Int8Weight) -> Array:
    """Return the bias plus what rounding the weight subtracts from the mean output."""
    bias: Any = np.zeros(len(rounded.scale)) if layer.bias is None or layer.bias.const_value is None else layer.bias.const_value.numpy()
    return (bias.reshape(-1) + (0 if rounded.bias_error is None else rounded.bias_error)).astype(np.float32)


def _conv(model: ir.Model, layer: Layer, weight: _Weight, calibration: Calibration, form: Form) -> None:
    stored, scale, zero = _stored_input(model, layer, calibration)
    out_scale, out_zero = _scalars(model, layer.output.name or "", calibration.range_of(layer.output))
    bias = _corrected_bias(layer, weight.rounded)
    step = np.float32(calibration.range_of(layer.input).scale) * weight.rounded.scale
    rounded_bias = np.clip(np.rint(bias / step), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    int32_bias = edit.initializer(model, f"{layer.name}.bias_quantized", rounded_bias)
    attributes = [attribute for name, attribute in layer.node.attributes.items() if name != "auto_pad"]
    if form == "operators":
        inputs = [stored, scale, zero, weight.stored, weight.scales, weight.zeros, out_scale, out_zero, int32_bias]
        conv = ir.Node("", "QLinearConv", inputs, attributes, name=layer.node.name)
        real = ir.node("DequantizeLinear", [conv.outputs[0], out_scale, out_zero])
        edit.replace(layer.node, [conv, real], real.outputs[0])
        return
    bias_scale = edit.initializer(model, f"{layer.name}.bias_scale", step.astype(np.float32))
    x = ir.node("DequantizeLinear", [stored, scale, zero])
    w = ir.node("DequantizeLinear", [weight.stored, weight.scales, weight.zeros], {"axis": 0})
    b = ir.node("DequantizeLinear", [int32_bias, bias_scale], {"axis": 0})
    conv = ir.Node("", "Conv", [x.outputs[0], w.outputs[0], b.outputs[0]], attributes, name=layer.node.name)
    down = ir.node("QuantizeLinear", [conv.outputs[0], out_scale, out_zero])
    real = ir.node("DequantizeLinear", [down.outputs[0], out_scale, out_zero])
    edit.replace(layer.node, [x, w, b, conv, down, real], real.outputs[0])


def _matmul(model: ir.Model, layer: Layer, weight: _Weight, calibration: Calibration, form: Form) -> None:
    stored, scale, zero = _stored_input(model, layer, calibration)
    bias = edit.initializer(model, f"{layer.name}.bias_corrected", _corrected_bias(layer, weight.rounded))
    last = layer.output.producer()
    assert last is not None
    if form == "operators":
        inputs = [stored, weight.stored, scale, weight.scales, zero, weight.zeros, bias]
        product = ir.node("MatMulIntegerToFloat", inputs, domain=edit.MICROSOFT, name=layer.node.name)
        edit.replace(last, [product], product.outputs[0])
        return
    x = ir.node("DequantizeLinear", [stored, scale, zero])
    w = ir.node("DequantizeLinear", [weight.stored, weight.scales, weight.zeros], {"axis": 1})
    product = ir.node("MatMul", [x.outputs[0], w.outputs[0]], name=layer.node.name)
    total = ir.node("Add", [product.outputs[0], bias])
    edit.replace(last, [x, w, product, total], total.outputs[0])


def split_products(model: ir.Model) -> ir.Model:
    """MatMul, Split into equal parts (gated feed-forwards) → Split of the weight, a MatMul for each part.

    The result is the same, bit for bit, without a copy of what is often the largest activation. The weight stays whole in the file, under
    its name. It is split when the graph is opened, or in each call if constants are not folded, which costs less than the copy.
    """
    for split in edit.nodes_of(model, "Split"):
        product = edit.producer(split.inputs[0], "MatMulIntegerToFloat")
        if product is None or len(product.outputs[0].uses()) != 1 or edit.attribute(split, "axis", 0) != -1 or len(split.inputs) > 1:
            continue
        parts = len(split.outputs)
        splits = {
            number: ir.node("Split", [product.inputs[number]], {"axis": axis, "num_outputs": parts}, num_outputs=parts)
            for number, axis in ((1, 1), (3, 0), (5, 0), (6, 0))  # weight, its scales and zeros, bias
        }
        products: list[ir.Node] = []
        for part in range(parts):
            inputs = [splits[number].outputs[part] if number in splits else value for number, value in enumerate(product.inputs)]
            products.append(ir.node("MatMulIntegerToFloat", inputs, domain=edit.MICROSOFT, name=f"{product.name}.{part}"))
        edit.replace(split, [*splits.values(), *products], *(node.outputs[0] for node in products))
    return edit.tidy(model)
