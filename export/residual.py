"""Convolutions on the residual stream, with the sizes of its channels in their weights.

Those that halve or double the resolution read and write the residual stream itself. Its channels differ in size, and no weight before
or behind it could take a factor: so each channel is divided by one on its way in and multiplied by one on its way out, in float, and
the weight takes both. What rounds to 8 bit between has channels of about one size. The two multiplications cost about a hundredth of
what the convolution does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from . import equalize, graph, recipe
from .layers import Layer, layers
from .quantize import kind_of
from .ranges import Array, Observed
from .recipe import Kind

EVENED = ".evened"
"""Ends the names of tensors whose channels were divided by their sizes."""


@dataclass(frozen=True)
class Sizes:
    """Of the channels of what a convolution takes and gives."""

    taken: Array
    given: Array


def sizes(model: ir.Model, kinds: Callable[[str], Kind], seen: Mapping[str, Observed]) -> dict[str, Sizes]:
    """By layer, for those that become 8 bit, as what was `seen` of their inputs and outputs asks for."""
    found: dict[str, Sizes] = {}
    for layer in layers(model):
        if recipe.on_residual_stream(layer.name) and layer.node.op_type == "Conv" and kind_of(layer, kinds) == "int8":
            assert layer.weight.const_value is not None
            weight: Array = layer.weight.const_value.numpy()
            taken, given = (seen[value.name or ""].peaks for value in (layer.input, layer.output))
            found[layer.name] = Sizes(equalize.balanced(taken, np.abs(weight).max(axis=(0, 2, 3))), equalize.centered(given))
    return found


def still(model: ir.Model, kinds: Callable[[str], Kind], found: Mapping[str, Sizes]) -> dict[str, Sizes]:
    """What is left of `found` where other `kinds` are wanted."""
    return {layer.name: found[layer.name] for layer in _of(model, found) if kind_of(layer, kinds) == "int8"}


def divided(model: ir.Model, seen: Mapping[str, Observed], found: Mapping[str, Sizes]) -> dict[str, Observed]:
    """What was `seen`, with the tensors that `apply` adds."""
    changed = dict(seen)
    for layer in _of(model, found):
        for value, size in ((layer.input, found[layer.name].taken), (layer.output, found[layer.name].given)):
            changed[_evened(layer, value)] = seen[value.name or ""].divided(size)
    return changed


def apply(model: ir.Model, found: Mapping[str, Sizes]) -> ir.Model:
    """`model` with the convolutions in `found` between two multiplications; it computes the same."""
    for layer in _of(model, found):
        taken, given = found[layer.name].taken, found[layer.name].given
        before = _times(model, layer.input, f"{layer.name}.taken", _inverse(taken))
        model.graph.insert_before(layer.node, before)
        before.outputs[0].name = _evened(layer, layer.input)
        layer.node.replace_input_with(0, before.outputs[0])
        out, name = layer.output, layer.output.name
        behind = _times(model, out, f"{layer.name}.given", given)
        model.graph.insert_after(layer.node, behind)
        out.name = _evened(layer, out)
        behind.outputs[0].name = name
        out.replace_all_uses_with(behind.outputs[0], replace_graph_outputs=True)
        behind.replace_input_with(0, out)
        both = (taken[None, :] / given[:, None])[:, :, None, None]
        equalize.scaled(layer.weight, both)
        if layer.bias is not None:
            equalize.scaled(layer.bias, _inverse(given))
    return model


def factors(found: Mapping[str, Sizes]) -> dict[str, Array]:
    """What `apply` multiplies the weight of each layer with: `NAME.output_factors` and `NAME.input_factors`."""
    named: dict[str, Array] = {}
    for name, one in found.items():
        named[f"{name}.output_factors"], named[f"{name}.input_factors"] = _inverse(one.given), one.taken
    return named


def _of(model: ir.Model, found: Mapping[str, Sizes]) -> list[Layer]:
    return [layer for layer in layers(model) if layer.name in found]


def _inverse(sizes: Array) -> Array:
    return (1 / sizes).astype(np.float32)


def _evened(layer: Layer, value: ir.Value) -> str:
    return f"{value.name}.{layer.name}{EVENED}"


def _times(model: ir.Model, value: ir.Value, name: str, factor: Array) -> ir.Node:
    """Channels of `value` times `factor`."""
    node = ir.node("Mul", [value, graph.initializer(model, name, np.ascontiguousarray(factor[None, :, None, None]))])
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    return node
