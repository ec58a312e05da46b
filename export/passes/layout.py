"""Passes that keep images channels last for providers whose kernels prefer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..graphs.edit import attribute, constant, initializer, integers, nodes_of, producer, rank, replace, tidy

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Permutations to and from channels last."""


def image_to_tokens(model: ir.Model) -> ir.Model:
    """Flatten to (batch, channels, pixels), Transpose → Transpose to channels last, Reshape to tokens; the same on the way back.

    The attention of autoencoders also normalizes the flattened image: that GroupNormalization moves before the flattening.
    """
    for norm in nodes_of(model, "GroupNormalization"):
        flat = producer(norm.inputs[0], "Reshape")
        if flat is None or rank(norm.inputs[0]) != 3 or rank(flat.inputs[0]) != 4 or not _same(norm.inputs[0], flat.inputs[0], 2):
            continue
        image_norm = ir.node("GroupNormalization", [flat.inputs[0], *norm.inputs[1:]], _attributes(norm), name=norm.name)
        _like(image_norm.outputs[0], flat.inputs[0])
        flattened = ir.node("Reshape", [image_norm.outputs[0], flat.inputs[1]], _attributes(flat))
        replace(norm, [image_norm, flattened], flattened.outputs[0])
    for swap in nodes_of(model, "Transpose"):
        if attribute(swap, "perm") != (0, 2, 1):
            continue
        flat, users = producer(swap.inputs[0], "Reshape"), list(swap.outputs[0].uses())
        unflatten = users[0].node if len(users) == 1 and users[0].node.op_type == "Reshape" else None
        if flat is not None and rank(flat.inputs[0]) == 4 and _same(swap.inputs[0], flat.inputs[0], 2) and flat.inputs[0] is not None:
            _transpose_before(model, swap, flat.inputs[0])
        elif unflatten is not None and rank(unflatten.outputs[0]) == 4 and _same(swap.outputs[0], unflatten.outputs[0], 2):
            _transpose_after(model, swap, unflatten)
    return tidy(model)


def _transpose_before(model: ir.Model, swap: ir.Node, image: ir.Value) -> None:
    """Replace `swap`, which transposes the flattened `image`, with a transpose of the image and a Reshape to tokens."""
    last = transposed(image, TO_LAST)
    channels = image.shape[1] if image.shape is not None else None
    tokens = ir.node("Reshape", [last.outputs[0], integers(model, 0, -1, int(channels))])  # pyright: ignore[reportArgumentType]  # _same: a number
    replace(swap, [last, tokens], tokens.outputs[0])


def _transpose_after(model: ir.Model, swap: ir.Node, unflatten: ir.Node) -> None:
    """Replace `swap` and the Reshape `unflatten` after it with a Reshape of the tokens to channels last and a transpose of the image."""
    shape = ir.node("Gather", [unflatten.inputs[1], integers(model, *TO_LAST)], {"axis": 0})
    image = ir.node("Reshape", [swap.inputs[0], shape.outputs[0]])
    image.outputs[0].shape, image.outputs[0].type = permuted(unflatten.outputs[0], TO_LAST), unflatten.outputs[0].type
    first = transposed(image.outputs[0], TO_FIRST)
    replace(unflatten, [shape, image, first], first.outputs[0])


def _same(first: ir.Value | None, second: ir.Value | None, axes: int) -> bool:
    """Whether both have the same first `axes` dimensions and a known number of channels."""
    if first is None or second is None or first.shape is None or second.shape is None:
        return False
    return tuple(first.shape[:axes]) == tuple(second.shape[:axes]) and isinstance(first.shape[1], int)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: found.value for name, found in node.attributes.items()}


def _like(value: ir.Value, other: ir.Value | None) -> None:
    """Copy the type and shape of `other` to `value`."""
    if other is not None:
        value.shape, value.type = other.shape, other.type


def channels_last(model: ir.Model) -> ir.Model:
    """Compute Add, Concat and Resize of images channels last, so that only the transposes around convolutions remain."""
    last_of: dict[ir.Value, ir.Value] = {}
    """The channels-last copy of each tensor that has one."""
    for node in list(model.graph):
        perm = attribute(node, "perm")
        if node.op_type == "Transpose" and perm == TO_FIRST and node.inputs[0] is not None:
            last_of[node.outputs[0]] = node.inputs[0]
        elif node.op_type == "Transpose" and perm == TO_LAST and node.inputs[0] is not None:
            last = last_of.setdefault(node.inputs[0], node.outputs[0])
            if last is not node.outputs[0] and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(last)
        elif node.domain == "" and node.op_type in {"Add", "Concat", "Resize"} and rank(node.outputs[0]) == 4:
            _to_last(model, node, last_of)
    return tidy(model)


def _to_last(model: ir.Model, node: ir.Node, last_of: dict[ir.Value, ir.Value]) -> None:
    """Compute `node` channels last, if it can be and an input is channels last or comes from a convolution."""
    images = node.inputs[:1] if node.op_type == "Resize" else node.inputs
    adjacent = any(value in last_of or producer(value, "Conv") is not None for value in images)
    if not adjacent or not _can_be_last(node) or any(rank(value) != 4 for value in images):
        return
    operands: list[ir.Value | None] = []
    for value in images:
        assert value is not None
        if value not in last_of:
            transpose = transposed(value, TO_LAST)
            model.graph.insert_before(node, transpose)
            last_of[value] = transpose.outputs[0]
        operands.append(last_of[value])
    sizes, gathers = _sizes_last(model, node.inputs[len(images) :])
    attributes = _attributes(node) | ({"axis": 3} if node.op_type == "Concat" else {})
    new = ir.node(node.op_type, [*operands, *sizes], attributes)
    new.outputs[0].shape, new.outputs[0].type = permuted(node.outputs[0], TO_LAST), node.outputs[0].type
    first = transposed(new.outputs[0], TO_FIRST)
    replace(node, [*gathers, new, first], first.outputs[0])
    last_of[first.outputs[0]] = new.outputs[0]


def _can_be_last(node: ir.Node) -> bool:
    """Whether `node` joins channels, if it is a Concat, and has factors or sizes for all axes, if it is a Resize."""
    if node.op_type == "Concat":
        return attribute(node, "axis", 1) == 1
    return node.op_type != "Resize" or not (attribute(node, "axes") or node.inputs[1] is not None)


def _sizes_last(model: ir.Model, sizes: Sequence[ir.Value | None]) -> tuple[list[ir.Value | None], list[ir.Node]]:
    """Return the factors and sizes of a Resize in channels-last order, and the new nodes that reorder computed ones."""
    reordered: list[ir.Value | None] = []
    gathers: list[ir.Node] = []
    for value in sizes:
        elements = constant(value)
        if value is None:
            reordered.append(None)
        elif elements is not None:
            reordered.append(initializer(model, f"{value.name}.last", elements[list(TO_LAST)]))
        else:
            gathers.append(ir.node("Gather", [value, integers(model, *TO_LAST)], {"axis": 0}))
            reordered.append(gathers[-1].outputs[0])
    return reordered, gathers


def transposed(value: ir.Value, perm: Sequence[int]) -> ir.Node:
    """Return a Transpose of `value`, not yet in the graph."""
    node = ir.node("Transpose", [value], {"perm": list(perm)})
    node.outputs[0].shape, node.outputs[0].type = permuted(value, perm), value.type
    return node


def permuted(value: ir.Value, perm: Sequence[int]) -> ir.Shape | None:
    """Return the shape of `value` with its axes in the order `perm`; None if unknown."""
    return None if value.shape is None or len(value.shape) != len(perm) else ir.Shape([value.shape[axis] for axis in perm])
