"""Passes that keep pictures in one order of dimensions, channels last, where the kernels of a provider want them so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from .graph import attribute, constant, initializer, integers, nodes_of, producer, rank, replace, tidy

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def pictures_to_tokens(model: ir.Model) -> ir.Model:
    """What flattens a picture and then swaps channels and pixels, and the way back → one transpose of the picture and a Reshape.

    So in the attention of autoencoders, where the normalization works on the flattened picture: it goes before the flattening.
    """
    for norm in nodes_of(model, "GroupNormalization"):
        flat = producer(norm.inputs[0], "Reshape")
        if flat is None or rank(norm.inputs[0]) != 3 or rank(flat.inputs[0]) != 4 or not _same(norm.inputs[0], flat.inputs[0], 2):
            continue
        picture = ir.node("GroupNormalization", [flat.inputs[0], *norm.inputs[1:]], _attributes(norm), name=norm.name)
        _like(picture.outputs[0], flat.inputs[0])
        again = ir.node("Reshape", [picture.outputs[0], flat.inputs[1]], _attributes(flat))
        replace(norm, [picture, again], again.outputs[0])
    for swap in nodes_of(model, "Transpose"):
        if attribute(swap, "perm") != (0, 2, 1):
            continue
        flat, users = producer(swap.inputs[0], "Reshape"), list(swap.outputs[0].uses())
        back = users[0].node if len(users) == 1 and users[0].node.op_type == "Reshape" else None
        if flat is not None and rank(flat.inputs[0]) == 4 and _same(swap.inputs[0], flat.inputs[0], 2) and flat.inputs[0] is not None:
            turn = turned(flat.inputs[0], TO_LAST)
            channels = flat.inputs[0].shape[1] if flat.inputs[0].shape is not None else None
            tokens = ir.node("Reshape", [turn.outputs[0], integers(model, 0, -1, int(channels))])  # pyright: ignore[reportArgumentType]  # a number, for weights
            replace(swap, [turn, tokens], tokens.outputs[0])
        elif back is not None and rank(back.outputs[0]) == 4 and _same(swap.outputs[0], back.outputs[0], 2):
            order = ir.node("Gather", [back.inputs[1], integers(model, *TO_LAST)], {"axis": 0})
            picture = ir.node("Reshape", [swap.inputs[0], order.outputs[0]])
            picture.outputs[0].shape, picture.outputs[0].type = permuted(back.outputs[0], TO_LAST), back.outputs[0].type
            turn = turned(picture.outputs[0], TO_FIRST)
            replace(back, [order, picture, turn], turn.outputs[0])
    return tidy(model)


def _same(first: ir.Value | None, second: ir.Value | None, axes: int) -> bool:
    """Whether both have the same first `axes` dimensions, the channels a number."""
    if first is None or second is None or first.shape is None or second.shape is None:
        return False
    return tuple(first.shape[:axes]) == tuple(second.shape[:axes]) and isinstance(first.shape[1], int)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: found.value for name, found in node.attributes.items()}


def _like(value: ir.Value, other: ir.Value | None) -> None:
    """Gives `value` the type and shape of `other`."""
    if other is not None:
        value.shape, value.type = other.shape, other.type


def channels_last(model: ir.Model) -> ir.Model:
    """Sums, concatenations and resizings of pictures go to channels last, so that transposes are left around convolutions alone."""
    twins: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        perm = attribute(node, "perm")
        if node.op_type == "Transpose" and perm == TO_FIRST and node.inputs[0] is not None:
            twins[node.outputs[0]] = node.inputs[0]
        elif node.op_type == "Transpose" and perm == TO_LAST and node.inputs[0] is not None:
            twin = twins.setdefault(node.inputs[0], node.outputs[0])
            if twin is not node.outputs[0] and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(twin)
        elif node.domain == "" and node.op_type in {"Add", "Concat", "Resize"} and rank(node.outputs[0]) == 4:
            _to_last(model, node, twins)
    return tidy(model)


def _to_last(model: ir.Model, node: ir.Node, twins: dict[ir.Value, ir.Value]) -> None:
    pictures = node.inputs[:1] if node.op_type == "Resize" else node.inputs
    axis = attribute(node, "axis", 1)
    near = any(value in twins or producer(value, "Conv") is not None for value in pictures)
    other = axis != 1 if node.op_type == "Concat" else node.op_type == "Resize" and (attribute(node, "axes") or node.inputs[1] is not None)
    if not near or other or any(rank(value) != 4 for value in pictures):
        return
    operands: list[ir.Value | None] = []
    for value in pictures:
        assert value is not None
        if value not in twins:
            transpose = turned(value, TO_LAST)
            model.graph.insert_before(node, transpose)
            twins[value] = transpose.outputs[0]
        operands.append(twins[value])
    attributes = _attributes(node) | ({"axis": 3} if node.op_type == "Concat" else {})
    orders: list[ir.Node] = []
    for value in node.inputs[len(pictures) :]:
        known = constant(value)
        if value is None or known is not None:
            operands.append(None if value is None or known is None else initializer(model, f"{value.name}.last", known[list(TO_LAST)]))
            continue
        order = ir.node("Gather", [value, integers(model, *TO_LAST)], {"axis": 0})
        orders.append(order)
        operands.append(order.outputs[0])
    new = ir.node(node.op_type, operands, attributes)
    new.outputs[0].shape, new.outputs[0].type = permuted(node.outputs[0], TO_LAST), node.outputs[0].type
    back = turned(new.outputs[0], TO_FIRST)
    replace(node, [*orders, new, back], back.outputs[0])
    twins[back.outputs[0]] = new.outputs[0]


def turned(value: ir.Value, perm: Sequence[int]) -> ir.Node:
    """A Transpose of `value`, not yet in the graph."""
    node = ir.node("Transpose", [value], {"perm": list(perm)})
    node.outputs[0].shape, node.outputs[0].type = permuted(value, perm), value.type
    return node


def permuted(value: ir.Value, perm: Sequence[int]) -> ir.Shape | None:
    return None if value.shape is None or len(value.shape) != len(perm) else ir.Shape([value.shape[axis] for axis in perm])
