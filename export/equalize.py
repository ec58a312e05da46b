"""Outliers moved from activations into weights, where each channel has a scale of its own (SmoothQuant, Xiao et al. 2022).

For the second linear layer of a gated feed-forward, `W2 · (h ⊙ gelu(g))`, whose input loses most of all layers in 8 bit:
h is linear in W1, so that dividing its channels by s and multiplying W2's rows by s changes nothing but the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from . import graph
from .layers import layers
from .ranges import Array, Observed

STRENGTH = 0.8
"""How much of the range moves: 0 leaves it in the activation, 1 puts all of it into the weight."""


@dataclass(frozen=True)
class _Pair:
    """The two layers of a gated feed-forward."""

    name: str
    """Name of the second layer."""
    activation: ir.Value
    first: ir.Value
    first_bias: ir.Value | None
    second: ir.Value
    start: int
    """First column of h in the first weight."""


def watched(model: ir.Model) -> dict[str, int | None]:
    """The tensors that `scales` has to know, with the axis of their channels."""
    return {pair.activation.name or "": -1 for pair in _pairs(model)}


def scales(model: ir.Model, seen: Mapping[str, Observed]) -> dict[str, Array]:
    """What to divide each channel by, for every gated feed-forward by its second layer's name, as what was `seen` asks for."""
    found: dict[str, Array] = {}
    for pair in _pairs(model):
        assert pair.second.const_value is not None
        real: Array = pair.second.const_value.numpy()
        found[pair.name] = balanced(seen[pair.activation.name or ""].peaks, np.abs(real).max(axis=1))
    return found


def balanced(peaks: Array, weight: Array) -> Array:
    """What to divide each channel by, whose largest activation and largest weight these are."""
    ratio = np.maximum(peaks, 1e-6) ** STRENGTH / np.maximum(weight, 1e-6) ** (1 - STRENGTH)
    return centered(ratio.astype(np.float32))


def centered(sizes: Array) -> Array:
    """`sizes` over their geometric mean, none beyond a hundred times that or below a hundredth."""
    sizes = np.maximum(sizes, 1e-6)
    return np.clip(sizes / np.exp(np.mean(np.log(sizes))), 1e-2, 1e2).astype(np.float32)


def divided(model: ir.Model, seen: Mapping[str, Observed], found: Mapping[str, Array]) -> dict[str, Observed]:
    """What was `seen`, as it is once the scales `found` have been applied."""
    changed = {pair.activation.name or "": found[pair.name] for pair in _pairs(model)}
    return {name: one.divided(changed[name]) if name in changed else one for name, one in seen.items()}


def apply(model: ir.Model, found: Mapping[str, Array]) -> ir.Model:
    """`model` with the channels of its gated feed-forwards scaled; it computes the same."""
    for pair in _pairs(model):
        scale = found[pair.name]
        columns = _columns(pair, scale)
        scaled(pair.first, columns[None, :])
        if pair.first_bias is not None:
            scaled(pair.first_bias, columns)
        scaled(pair.second, scale[:, None])
    return model


def keep(model: ir.Model, factors: Mapping[str, Array]) -> ir.Model:
    """`model` with `factors` as initializers that no node uses: what merges a LoRA into its weights has to know them."""
    for name, array in factors.items():
        graph.initializer(model, name, array)
    return model


def factors(model: ir.Model, found: Mapping[str, Array]) -> dict[str, Array]:
    """What `apply` multiplies the weights of each scaled layer with: `NAME.output_factors` and `NAME.input_factors`."""
    named: dict[str, Array] = {}
    for pair in _pairs(model):
        named[f"{(pair.first.name or '').removesuffix('.weight')}.output_factors"] = _columns(pair, found[pair.name])
        named[f"{pair.name}.input_factors"] = found[pair.name]
    return named


def _columns(pair: _Pair, scale: Array) -> Array:
    assert pair.first.const_value is not None
    columns = np.ones(graph.dims(pair.first.const_value)[1], np.float32)
    columns[pair.start : pair.start + len(scale)] = 1 / scale
    return columns


def scaled(value: ir.Value, factor: Array) -> None:
    """Makes the initializer `value` hold itself times `factor`."""
    graph.changed_weight(value, graph.dims(value.const_value), lambda data: (data * factor).astype(np.float32))


def _pairs(model: ir.Model) -> list[_Pair]:
    """Layers whose input is h ⊙ gelu(g), with h and g the halves of another layer's output that goes nowhere else."""
    every = [layer for layer in layers(model) if layer.node.op_type == "MatMul"]
    outputs = {id(layer.output): layer for layer in every}
    found: list[_Pair] = []
    for layer in every:
        product = graph.producer(layer.input, "Mul")
        if product is None or len(layer.input.uses()) != 1:
            continue
        gate = next((place for place in (0, 1) if graph.producer(product.inputs[place], "Gelu")), None)
        half = None if gate is None else product.inputs[1 - gate]
        split = graph.producer(half, "Split")
        whole = None if split is None or split.inputs[0] is None else outputs.get(id(split.inputs[0]))
        if (
            split is None
            or whole is None
            or half is None
            or len(half.uses()) != 1
            or len(whole.output.uses()) != 1
            or len(whole.weight.uses()) != 1
        ):
            continue
        assert layer.weight.const_value is not None
        start = split.outputs.index(half) * graph.dims(layer.weight.const_value)[0]
        found.append(_Pair(layer.name, layer.input, whole.weight, whole.bias, layer.weight, start))
    return found
