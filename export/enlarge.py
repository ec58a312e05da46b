"""Enlarging in 8 bit: what rounds behind an enlargement rounds before it, where there are a quarter of the numbers.

An enlargement that repeats the nearest numbers gives the same, bit for bit, before or after what is done to each number alone.
"""

from __future__ import annotations

import onnx_ir as ir

from . import graph


def rounded_first(model: ir.Model) -> ir.Model:
    """Resize(nearest), [Mul by a factor for each channel,] QuantizeLinear → [Mul,] QuantizeLinear, Resize(nearest)."""
    for resize in graph.nodes_of(model, "Resize"):
        between = _between(resize)
        if not between:
            continue
        first, last = between[0], between[-1]
        following = [(use.node, use.idx) for use in last.outputs[0].uses()]
        first.replace_input_with(0, resize.inputs[0])
        resize.replace_input_with(0, last.outputs[0])
        for node, place in following:
            node.replace_input_with(place, resize.outputs[0])
        model.graph.remove(between)
        model.graph.insert_before(resize, between)
        for node in between:
            node.outputs[0].shape = None  # said how large it was behind
        resize.outputs[0].type = last.outputs[0].type
    return model


def _between(resize: ir.Node) -> list[ir.Node]:
    """What comes behind `resize` and treats each number alone, up to the QuantizeLinear; empty where there is none, or more goes on."""
    factors = graph.constant(resize.inputs[2]) if len(resize.inputs) == 3 else None
    pictures = len(resize.inputs) == 4 or (factors is not None and factors.size == 4 and tuple(factors[:2]) == (1, 1))
    found: list[ir.Node] = []
    value = resize.outputs[0]
    while pictures and graph.attribute(resize, "mode", "nearest") == "nearest":
        users = [use for use in value.uses() if use.idx == 0]
        if len(users) != 1 or len(list(value.uses())) != 1 or value.is_graph_output():
            break
        node = users[0].node
        if node.op_type == "QuantizeLinear":
            scale = node.inputs[1]
            return [*found, node] if scale is not None and scale.const_value is not None and scale.const_value.size == 1 else []
        if node.op_type != "Mul" or not _of_channels(node.inputs[1]):
            break
        found.append(node)
        value = node.outputs[0]
    return []


def _of_channels(value: ir.Value | None) -> bool:
    """Whether `value` is a constant number for each channel of a picture, or one for all."""
    if value is None or value.const_value is None:
        return False
    shape = graph.dims(value.const_value)
    return shape in {(), (1,)} or (len(shape) in {3, 4} and shape[-2:] == (1, 1) and shape[:-3] in {(), (1,)})
