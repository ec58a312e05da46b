"""Scale the channels of the residual stream around the convolutions that change its resolution.

These convolutions read and write the residual stream itself. Its channels differ in range, and no other weight could absorb a factor. So
each input channel is divided by a factor, each output channel is multiplied by one, in float, and the convolution's weight compensates for
both. In between, int8 tensors have channels of similar range. The two multiplications cost about 1 % of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graphs import edit
from . import recipe, smooth_quant
from .layers import Layer, layers
from .quantize import kind_of
from .ranges import Array, Observed
from .recipe import Kind

SCALED = ".evened"
"""Suffix of tensors with scaled channels."""


@dataclass(frozen=True)
class Scales:
    """Divisors of a convolution's input and output channels."""

    input: Array
    output: Array


def scales(model: ir.Model, kinds: Callable[[str], Kind], observed: Mapping[str, Observed]) -> dict[str, Scales]:
    """Return the scales of the int8 convolutions on the residual stream, by name, from the observed ranges of their inputs and outputs."""
    found: dict[str, Scales] = {}
    for layer in layers(model):
        if recipe.on_residual_stream(layer.name) and layer.node.op_type == "Conv" and kind_of(layer, kinds) == "int8":
            assert layer.weight.const_value is not None
            weight: Array = layer.weight.const_value.numpy()
            inputs, outputs = (observed[value.name or ""].peaks for value in (layer.input, layer.output))
            found[layer.name] = Scales(smooth_quant.balanced(inputs, np.abs(weight).max(axis=(0, 2, 3))), smooth_quant.centered(outputs))
    return found


def remaining(model: ir.Model, kinds: Callable[[str], Kind], scale_of: Mapping[str, Scales]) -> dict[str, Scales]:
    """Return the entries of `scale_of` for layers that are int8 under `kinds`."""
    return {layer.name: scale_of[layer.name] for layer in _layers_of(model, scale_of) if kind_of(layer, kinds) == "int8"}


def divided(model: ir.Model, observed: Mapping[str, Observed], scale_of: Mapping[str, Scales]) -> dict[str, Observed]:
    """Return the observed ranges with those of the tensors that `apply` adds."""
    extended = dict(observed)
    for layer in _layers_of(model, scale_of):
        for value, scale in ((layer.input, scale_of[layer.name].input), (layer.output, scale_of[layer.name].output)):
            extended[_scaled_name(layer, value)] = observed[value.name or ""].divided(scale)
    return extended


def apply(model: ir.Model, scale_of: Mapping[str, Scales]) -> ir.Model:
    """Scale the channels around the convolutions in `scale_of`; the outputs stay the same."""
    for layer in _layers_of(model, scale_of):
        scale = scale_of[layer.name]
        before = _multiply(model, layer.input, f"{layer.name}.taken", _inverse(scale.input))
        model.graph.insert_before(layer.node, before)
        before.outputs[0].name = _scaled_name(layer, layer.input)
        layer.node.replace_input_with(0, before.outputs[0])
        output, name = layer.output, layer.output.name
        after = _multiply(model, output, f"{layer.name}.given", scale.output)
        model.graph.insert_after(layer.node, after)
        output.name = _scaled_name(layer, output)
        after.outputs[0].name = name
        output.replace_all_uses_with(after.outputs[0], replace_graph_outputs=True)
        after.replace_input_with(0, output)
        smooth_quant.multiply(layer.weight, (scale.input[None, :] / scale.output[:, None])[:, :, None, None])
        if layer.bias is not None:
            smooth_quant.multiply(layer.bias, _inverse(scale.output))
    return model


def factors(scale_of: Mapping[str, Scales]) -> dict[str, Array]:
    """Return the factors by which `apply` multiplies each layer's weight: `NAME.output_factors` and `NAME.input_factors`."""
    named: dict[str, Array] = {}
    for name, scale in scale_of.items():
        named[f"{name}.output_factors"], named[f"{name}.input_factors"] = _inverse(scale.output), scale.input
    return named


def _layers_of(model: ir.Model, scale_of: Mapping[str, Scales]) -> list[Layer]:
    return [layer for layer in layers(model) if layer.name in scale_of]


def _inverse(scale: Array) -> Array:
    return (1 / scale).astype(np.float32)


def _scaled_name(layer: Layer, value: ir.Value) -> str:
    return f"{value.name}.{layer.name}{SCALED}"


def _multiply(model: ir.Model, value: ir.Value, name: str, factor: Array) -> ir.Node:
    """Return a node that multiplies the channels of `value` by `factor`, the initializer `name`."""
    node = ir.node("Mul", [value, edit.initializer(model, name, np.ascontiguousarray(factor[None, :, None, None]))])
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    return node
