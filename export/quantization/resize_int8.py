"""Resize in int8: quantize before an upsampling instead of after it, on a quarter of the elements.

Nearest-neighbour upsampling commutes with elementwise operations, bit for bit.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graphs import edit


def quantize_before_resize(model: ir.Model) -> ir.Model:
    """Resize(nearest), [Mul by a factor per channel,] QuantizeLinear → [Mul,] QuantizeLinear, Resize(nearest)."""
    for resize in edit.nodes_of(model, "Resize"):
        moved = _elementwise_after(resize)
        if not moved:
            continue
        first, last = moved[0], moved[-1]
        users = [(use.node, use.idx) for use in last.outputs[0].uses()]
        first.replace_input_with(0, resize.inputs[0])
        resize.replace_input_with(0, last.outputs[0])
        for node, number in users:
            node.replace_input_with(number, resize.outputs[0])
        model.graph.remove(moved)
        model.graph.insert_before(resize, moved)
        for node in moved:
            node.outputs[0].shape = None  # the old one is the upsampled shape
        resize.outputs[0].type = last.outputs[0].type
    return model


def _elementwise_after(resize: ir.Node) -> list[ir.Node]:
    """Return the elementwise nodes after `resize` up to a QuantizeLinear; empty if they cannot move before it."""
    nodes: list[ir.Node] = []
    node = _only_user(resize.outputs[0]) if _is_nearest(resize) else None
    while node is not None and node.op_type == "Mul" and _is_per_channel(node.inputs[1]):
        nodes.append(node)
        node = _only_user(node.outputs[0])
    if node is None or node.op_type != "QuantizeLinear":
        return []
    scale = node.inputs[1]
    return [*nodes, node] if scale is not None and scale.const_value is not None and scale.const_value.size == 1 else []


def _is_nearest(resize: ir.Node) -> bool:
    """Whether `resize` repeats pixels: nearest neighbours, and not along batch or channels."""
    factors = edit.constant(resize.inputs[2]) if len(resize.inputs) == 3 else None
    only_pixels = len(resize.inputs) == 4 or (factors is not None and factors.size == 4 and tuple(factors[:2]) == (1, 1))
    return only_pixels and edit.attribute(resize, "mode", "nearest") == "nearest"


def _only_user(value: ir.Value) -> ir.Node | None:
    """Return the only user of `value`, if `value` is its first input."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output() else None


def _is_per_channel(value: ir.Value | None) -> bool:
    """Whether `value` is a constant with one element per channel of an image, or a single element."""
    if value is None or value.const_value is None:
        return False
    shape = edit.dims(value.const_value)
    return shape in {(), (1,)} or (len(shape) in {3, 4} and shape[-2:] == (1, 1) and shape[:-3] in {(), (1,)})
