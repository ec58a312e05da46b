"""Move outliers from activations into weights, which have one scale per channel (SmoothQuant, Xiao et al. 2022).

Applied to the second linear layer of gated feed-forwards, `W2 · (h ⊙ gelu(g))`, whose inputs lose more in int8 than those of any other
layer. h is linear in W1, so dividing its channels by s and multiplying W2's rows by s changes only the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graphs import edit
from .layers import layers
from .ranges import Array, Observed

STRENGTH = 0.8
"""Share of the range that moves into the weight, 0 to 1 (alpha in the paper)."""


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
    """Return the tensors whose ranges `scales` needs, by name, with their channel axes."""
    return {pair.activation.name or "": -1 for pair in _pairs(model)}


def scales(model: ir.Model, observed: Mapping[str, Observed]) -> dict[str, Array]:
    """Return the channel divisors of every gated feed-forward, by the name of its second layer, from the observed ranges."""
    found: dict[str, Array] = {}
    for pair in _pairs(model):
        assert pair.second.const_value is not None
        real: Array = pair.second.const_value.numpy()
        found[pair.name] = balanced(observed[pair.activation.name or ""].peaks, np.abs(real).max(axis=1))
    return found


def balanced(peaks: Array, weight: Array) -> Array:
    """Return channel divisors from the largest activation and the largest weight of each channel."""
    ratio = np.maximum(peaks, 1e-6) ** STRENGTH / np.maximum(weight, 1e-6) ** (1 - STRENGTH)
    return centered(ratio.astype(np.float32))


def centered(values: Array) -> Array:
    """Return `values` divided by their geometric mean, clipped to 0.01 to 100."""
    values = np.maximum(values, 1e-6)
    return np.clip(values / np.exp(np.mean(np.log(values))), 1e-2, 1e2).astype(np.float32)


def divided(model: ir.Model, observed: Mapping[str, Observed], scale_of: Mapping[str, Array]) -> dict[str, Observed]:
    """Return the observed ranges after dividing channels by `scale_of` (see `scales`)."""
    by_tensor = {pair.activation.name or "": scale_of[pair.name] for pair in _pairs(model)}
    return {name: tensor.divided(by_tensor[name]) if name in by_tensor else tensor for name, tensor in observed.items()}


def apply(model: ir.Model, scale_of: Mapping[str, Array]) -> ir.Model:
    """Scale the channels of the gated feed-forwards in `model`; the outputs stay the same."""
    for pair in _pairs(model):
        scale = scale_of[pair.name]
        columns = _columns(pair, scale)
        multiply(pair.first, columns[None, :])
        if pair.first_bias is not None:
            multiply(pair.first_bias, columns)
        multiply(pair.second, scale[:, None])
    return model


def store_factors(model: ir.Model, factors: Mapping[str, Array]) -> ir.Model:
    """Add `factors` to `model` as initializers that no node uses: merging a LoRA into the weights needs them."""
    for name, array in factors.items():
        edit.initializer(model, name, array)
    return model


def factors(model: ir.Model, scale_of: Mapping[str, Array]) -> dict[str, Array]:
    """Return the factors by which `apply` multiplies the weights: `NAME.output_factors` and `NAME.input_factors`, by layer."""
    named: dict[str, Array] = {}
    for pair in _pairs(model):
        named[f"{(pair.first.name or '').removesuffix('.weight')}.output_factors"] = _columns(pair, scale_of[pair.name])
        named[f"{pair.name}.input_factors"] = scale_of[pair.name]
    return named


def _columns(pair: _Pair, scale: Array) -> Array:
    """Return the factors of all columns of the first weight: 1 / scale for h, 1 for g."""
    assert pair.first.const_value is not None
    columns = np.ones(edit.dims(pair.first.const_value)[1], np.float32)
    columns[pair.start : pair.start + len(scale)] = 1 / scale
    return columns


def multiply(value: ir.Value, factor: Array) -> None:
    """Multiply the data of the initializer `value` by `factor`."""
    edit.change_weight(value, edit.dims(value.const_value), lambda data: (data * factor).astype(np.float32))


def _pairs(model: ir.Model) -> list[_Pair]:
    """Return the layers whose input is h ⊙ gelu(g), where h and g are halves of another layer's output with no other users."""
    linear = [layer for layer in layers(model) if layer.node.op_type == "MatMul"]
    layer_of = {id(layer.output): layer for layer in linear}
    found: list[_Pair] = []
    for layer in linear:
        h = _gated(layer.input)
        split = edit.producer(h, "Split")
        first = None if split is None or split.inputs[0] is None else layer_of.get(id(split.inputs[0]))
        if split is None or first is None or h is None:
            continue
        if len(first.output.uses()) != 1 or len(first.weight.uses()) != 1:
            continue
        assert layer.weight.const_value is not None
        start = split.outputs.index(h) * edit.dims(layer.weight.const_value)[0]
        found.append(_Pair(layer.name, layer.input, first.weight, first.bias, layer.weight, start))
    return found


def _gated(value: ir.Value) -> ir.Value | None:
    """Return h if `value` is h ⊙ gelu(g), and neither has other users."""
    product = edit.producer(value, "Mul")
    if product is None or len(value.uses()) != 1:
        return None
    gate = next((number for number in (0, 1) if edit.producer(product.inputs[number], "Gelu")), None)
    h = None if gate is None else product.inputs[1 - gate]
    return h if h is not None and len(h.uses()) == 1 else None
