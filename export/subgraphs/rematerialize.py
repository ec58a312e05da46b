"""Recompute float tensors in the pieces that read them, if their int8 inputs are smaller to store between pieces.

A tensor that passes from one piece to another goes through memory as a whole. Three int8 tensors take three quarters of the bytes of
their float sum; the output of an int8 layer takes a quarter of the bytes in int8.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ..graphs.edit import is_constant

MAX_SOURCES = 3
"""Maximum number of int8 tensors to recompute a tensor from: reading and adding four takes longer than reading one in float."""
_RECOMPUTED = frozenset({"Add", "DequantizeLinear", "Mul"})
_ZERO_POINTS = {"QuantizeLinear": 2, "QLinearConv": 7}
"""Operators with int8 or uint8 outputs, and the number of the input that is the zero point."""


def recompute(model: ir.Model, piece_of: Mapping[int, int]) -> dict[int, int]:
    """Recompute tensors in later pieces; `piece_of` maps node ids to pieces, as `vae_bands.assign_pieces` returns it.

    Returns `piece_of` with the new nodes.
    """
    extended = dict(piece_of)
    for node in [node for node in model.graph if id(node) in piece_of and node.op_type in _RECOMPUTED]:
        for value in node.outputs:
            later = sorted({extended[id(use.node)] for use in value.uses()} - {extended[id(node)]})
            sources = _sources(value) if later and not value.is_graph_output() else None
            if sources is None or len(sources) > MAX_SOURCES:
                continue
            for number in later:
                extended |= {id(copy): number for copy in _recompute_in(model, value, number, extended)}
    return extended


def _recompute_in(model: ir.Model, value: ir.Value, number: int, piece_of: Mapping[int, int]) -> list[ir.Node]:
    """Recompute `value` for its users in piece `number`; return the new nodes."""
    uses = [use for use in value.uses() if piece_of[id(use.node)] == number]
    first = next(node for node in model.graph if any(node is use.node for use in uses))
    nodes: list[ir.Node] = []
    copy = _copy(value, nodes)
    model.graph.insert_before(first, nodes)
    for use in uses:
        use.node.replace_input_with(use.idx, copy)
    return nodes


def _sources(value: ir.Value) -> set[ir.Value] | None:
    """Return the int8 tensors that `value` is computed from, elementwise; None if it depends on others."""
    node = value.producer()
    if node is None or node.op_type not in _RECOMPUTED:
        return None
    if node.op_type == "DequantizeLinear":
        stored = node.inputs[0]
        return None if stored is None or dtype(stored).itemsize != 1 else {stored}
    sources = set[ir.Value]()
    for operand in node.inputs:
        if operand is None or is_constant(operand):
            continue
        further = _sources(operand)
        if further is None:
            return None
        sources |= further
    return sources


def _copy(value: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """Return a copy of `value`, computed from the same int8 tensors by new nodes, which are appended to `nodes`."""
    node = value.producer()
    if node is None or node.op_type not in _RECOMPUTED or is_constant(value):
        return value
    inputs = [operand if operand is None or node.op_type == "DequantizeLinear" else _copy(operand, nodes) for operand in node.inputs]
    nodes.append(ir.Node(node.domain, node.op_type, inputs, [*node.attributes.values()], version=node.version))
    return nodes[-1].outputs[0]


def dtype(value: ir.Value) -> ir.DataType:
    """Return the element type of a tensor: that of its zero point if it is quantized, else float32."""
    node = value.producer()
    if node is None:
        return value.dtype or ir.DataType.FLOAT
    if node.op_type == "Resize" and node.inputs[0] is not None:
        return dtype(node.inputs[0])
    if node.op_type not in _ZERO_POINTS:
        return ir.DataType.FLOAT
    number = _ZERO_POINTS[node.op_type]
    zero = node.inputs[number] if len(node.inputs) > number else None
    return ir.DataType.UINT8 if zero is None or zero.dtype is None else zero.dtype
