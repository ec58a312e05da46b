"""Which rows of a graph's tensors belong together: what is at which height of a picture, and how far an operator looks around."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from ..models.manifest import Norm
from .graph import attribute, constant, dims, nodes_of, producer

_ALIKE = frozenset({
    "Add", "Cast", "Clip", "DequantizeLinear", "Div", "Gelu", "HardSwish", "Identity", "Mul", "QuantizeLinear", "QuickGelu", "Relu",
    "Sigmoid", "Sub", "Tanh",
})  # fmt: skip
"""Operators each place of whose output comes from the same place of the inputs."""
CONVOLUTIONS = frozenset({"Conv", "QLinearConv"})


@dataclass(frozen=True)
class Normal:
    """A group normalization: `x`, as (batch, groups, rest), normalized, and back in its shape as `out`."""

    x: ir.Value
    out: ir.Value
    norm: Norm


def normals(model: ir.Model) -> Iterator[Normal]:
    """The group normalizations of `model`, in the form that `fusions.lower_group_norm` gives them."""
    for node in nodes_of(model, "InstanceNormalization"):
        split = producer(node.inputs[0], "Reshape")
        shape = None if split is None else constant(split.inputs[1])
        users = list(node.outputs[0].uses())
        if split is None or split.inputs[0] is None or shape is None or shape.size != 3 or shape[0] != 0 or shape[2] != -1:
            continue
        if len(users) == 1 and users[0].node.op_type == "Reshape" and _is_plain(node):
            norm = Norm(int(shape[1]), float(attribute(node, "epsilon", 1e-5)))
            yield Normal(split.inputs[0], users[0].node.outputs[0], norm)


def _is_plain(node: ir.Node) -> bool:
    """Whether an InstanceNormalization scales by 1 and shifts by 0."""
    scale, shift = (constant(value) for value in node.inputs[1:])
    return scale is not None and shift is not None and bool((scale == 1).all()) and not shift.any()


def scales(model: ir.Model) -> dict[int, Fraction]:
    """Rows of each tensor for one of the graph's input, by id; only of those that are pixels for sure."""
    pixels = [value for value in model.graph.inputs if value.shape is not None and value.shape.rank() == 4 and value.shape[2] != 1]
    found = {id(value): Fraction(1) for value in pixels}
    normal_of = {id(normal.out): normal.x for normal in normals(model)}
    for node in model.graph:
        for value in node.outputs:
            known = {found[id(one)] for one in node.inputs if id(one) in found}
            if id(value) in normal_of:
                known = {found[id(x)] for x in [normal_of[id(value)]] if id(x) in found}
            elif node.op_type in CONVOLUTIONS or node.op_type == "Resize":
                factor = _factor(node)
                known = {scale * factor for scale in known} if factor else set[Fraction]()
            elif node.op_type not in _ALIKE:
                continue
            if len(known) == 1:
                found[id(value)] = known.pop()
    return found


def channels(model: ir.Model) -> dict[int, int]:
    """Channels of tensors by id, where weights tell them or an operator does not change them."""
    found = {id(value): value.shape[1] for value in model.graph.inputs if value.shape is not None and value.shape.rank() == 4}
    found = {key: size for key, size in found.items() if isinstance(size, int)}
    normal_of = {id(normal.out): normal.x for normal in normals(model)}
    for node in model.graph:
        known = {found[id(value)] for value in node.inputs if id(value) in found}
        if id(node.outputs[0]) in normal_of:
            known = {found[id(value)] for value in [normal_of[id(node.outputs[0])]] if id(value) in found}
        elif node.op_type in CONVOLUTIONS:
            weight = node.inputs[3 if node.op_type == "QLinearConv" else 1]
            made = None if weight is None else weight.producer()
            weight = weight if made is None else made.inputs[0]
            known = set[int]() if weight is None or weight.const_value is None else {dims(weight.const_value)[0]}
        elif node.op_type not in _ALIKE | {"Resize"}:
            continue
        if len(known) == 1:
            found |= {id(value): next(iter(known)) for value in node.outputs}
    return found


def _factor(node: ir.Node) -> Fraction | None:
    """Rows of the output for one of the input, for a convolution or an enlargement; None where that is not a plain ratio."""
    if node.op_type == "Resize":
        sizes = constant(node.inputs[2]) if len(node.inputs) == 3 else None
        modes = [attribute(node, name) for name in ("mode", "nearest_mode", "coordinate_transformation_mode")]
        if sizes is None or sizes.size != 4 or modes != ["nearest", "floor", "asymmetric"] or tuple(sizes[:2]) != (1, 1) or sizes[2] % 1:
            return None
        return Fraction(int(sizes[2]))
    if attribute(node, "kernel_shape") is None:
        return None
    kernel, before, after, stride = _window(node)
    even = before + after == kernel - stride and set(attribute(node, "dilations", (1,))) == {1}
    return Fraction(1, stride) if even and attribute(node, "auto_pad", "NOTSET") == "NOTSET" else None


def _window(conv: ir.Node) -> tuple[int, int, int, int]:
    """Along the height of a convolution: size, padding before and after, stride."""
    kernel, pads = attribute(conv, "kernel_shape"), attribute(conv, "pads", (0, 0, 0, 0))
    return int(kernel[0]), int(pads[0]), int(pads[2]), int(attribute(conv, "strides", (1, 1))[0])


def halo(nodes: Sequence[ir.Node], rows: Mapping[str, int], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> int | None:
    """Rows of the coarsest tensor that a band needs at either side; None where some operator needs more than a few."""
    reach = {id(value): (0, 0) for value in inputs}
    for node in nodes:
        known = [reach[id(value)] for value in node.inputs if id(value) in reach]
        if not known:
            continue
        above, below = (max(one) for one in zip(*known, strict=True))
        factor = _factor(node) if node.op_type in CONVOLUTIONS | {"Resize"} else Fraction(1)
        if factor is None:
            return None
        if node.op_type == "Resize":
            above, below = above * int(factor), below * int(factor)
        elif node.op_type in CONVOLUTIONS:
            kernel, before, _, stride = _window(node)
            above, below = -(-(above + before) // stride), (below + kernel - 1 - before) // stride
        elif node.op_type not in _ALIKE:
            return None
        reach |= {id(value): (above, below) for value in node.outputs}
    return max(-(-number // rows[value.name or ""]) for value in outputs for number in reach.get(id(value), (0, 0)))
