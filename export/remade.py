"""What one piece of a graph leaves to later ones in 8 bit, to be made again there: float tensors that are made of 8-bit ones elementwise.

Between two pieces all of a tensor goes through memory. A residual sum of three 8-bit tensors takes three quarters of the bytes as these,
what comes out of an 8-bit layer a quarter.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from .graph import is_constant

MOST = 3
"""8-bit tensors that a tensor is made of again, at most: to read and add up four takes longer than to read one in float."""
_REMADE = frozenset({"Add", "DequantizeLinear", "Mul"})
_ZEROS = {"QuantizeLinear": 2, "QLinearConv": 7}
"""Operators that give 8 bit, and which of their inputs is the zero point."""


def copied(model: ir.Model, numbers: Mapping[int, int]) -> dict[int, int]:
    """Makes what is made of 8-bit tensors and goes from one piece to others again in each of them, where these take fewer bytes.

    `numbers` are the pieces that nodes belong to, as `bands.places` gives them; what comes back knows the new nodes as well.
    """
    found = dict(numbers)
    for node in list(model.graph):
        if id(node) not in numbers:
            continue
        for value in node.outputs:
            later = sorted({found[id(use.node)] for use in value.uses()} - {found[id(node)]})
            if node.op_type not in _REMADE or not later or value.is_graph_output():
                continue
            parts = _parts(value)
            if parts is None or len(parts) > MOST:
                continue
            for number in later:
                users = [use for use in value.uses() if found[id(use.node)] == number]
                first = next(one for one in model.graph if any(one is use.node for use in users))
                nodes: list[ir.Node] = []
                again = _copy(value, nodes)
                model.graph.insert_before(first, nodes)
                found |= {id(one): number for one in nodes}
                for use in users:
                    use.node.replace_input_with(use.idx, again)
    return found


def _parts(value: ir.Value) -> set[ir.Value] | None:
    """The 8-bit tensors that `value` is made of, elementwise; None where something else goes into it."""
    node = value.producer()
    if node is None or node.op_type not in _REMADE:
        return None
    if node.op_type == "DequantizeLinear":
        stored = node.inputs[0]
        return None if stored is None or dtype(stored).itemsize != 1 else {stored}
    parts = set[ir.Value]()
    for one in node.inputs:
        if one is None or is_constant(one):
            continue
        further = _parts(one)
        if further is None:
            return None
        parts |= further
    return parts


def _copy(value: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """What has the numbers of `value`, made of the same 8-bit tensors by new nodes, which come into `nodes`."""
    node = value.producer()
    if node is None or node.op_type not in _REMADE or is_constant(value):
        return value
    inputs = [one if one is None or node.op_type == "DequantizeLinear" else _copy(one, nodes) for one in node.inputs]
    nodes.append(ir.Node(node.domain, node.op_type, inputs, [*node.attributes.values()], version=node.version))
    return nodes[-1].outputs[0]


def dtype(value: ir.Value) -> ir.DataType:
    """What the elements of a tensor are: those of the zero point where it rounds to 8 bit, else float32."""
    node = value.producer()
    if node is None:
        return value.dtype or ir.DataType.FLOAT
    if node.op_type == "Resize" and node.inputs[0] is not None:
        return dtype(node.inputs[0])
    if node.op_type not in _ZEROS:
        return ir.DataType.FLOAT
    zero = node.inputs[_ZEROS[node.op_type]] if len(node.inputs) > _ZEROS[node.op_type] else None
    return ir.DataType.UINT8 if zero is None or zero.dtype is None else zero.dtype
