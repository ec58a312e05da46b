"""Rows of image tensors: how they scale through a graph, and how many neighbouring rows operators read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from ...models.manifest import Norm
from ..graphs.edit import attribute, constant, dims, nodes_of, producer

_ELEMENTWISE = frozenset({
    "Add", "Cast", "Clip", "DequantizeLinear", "Div", "Gelu", "HardSwish", "Identity", "Mul", "QuantizeLinear", "QuickGelu", "Relu",
    "Sigmoid", "Sub", "Tanh",
})  # fmt: skip
"""Operators that compute each element of the output from the same element of the inputs."""
CONVOLUTIONS = frozenset({"Conv", "QLinearConv"})


@dataclass(frozen=True)
class Normalization:
    """A group normalization of `x` without scale and shift; `output` has the shape of `x`."""

    x: ir.Value
    output: ir.Value
    norm: Norm


def normalizations(model: ir.Model) -> Iterator[Normalization]:
    """Yield the group normalizations of `model`, in the form that `fusions.lower_group_norm` writes."""
    for node in nodes_of(model, "InstanceNormalization"):
        split = producer(node.inputs[0], "Reshape")
        shape = None if split is None else constant(split.inputs[1])
        users = list(node.outputs[0].uses())
        if split is None or split.inputs[0] is None or shape is None or shape.size != 3 or shape[0] != 0 or shape[2] != -1:
            continue
        if len(users) == 1 and users[0].node.op_type == "Reshape" and _is_unscaled(node):
            norm = Norm(int(shape[1]), float(attribute(node, "epsilon", 1e-5)))
            yield Normalization(split.inputs[0], users[0].node.outputs[0], norm)


def _is_unscaled(node: ir.Node) -> bool:
    """Whether an InstanceNormalization scales by 1 and shifts by 0."""
    scale, shift = (constant(value) for value in node.inputs[1:])
    return scale is not None and shift is not None and bool((scale == 1).all()) and not shift.any()


def row_scales(model: ir.Model) -> dict[int, Fraction]:
    """Return the rows of each image tensor per row of the graph's input, by the tensor's id; unknown ones are left out."""
    images = [value for value in model.graph.inputs if value.shape is not None and value.shape.rank() == 4 and value.shape[2] != 1]
    scales = {id(value): Fraction(1) for value in images}
    normalized = {id(normalization.output): normalization.x for normalization in normalizations(model)}
    for node in model.graph:
        known = {scales[id(value)] for value in _sources(node, normalized) if id(value) in scales}
        if node.op_type in CONVOLUTIONS or node.op_type == "Resize":
            factor = _factor(node)
            known = {scale * factor for scale in known} if factor else set[Fraction]()
        if len(known) == 1:
            scales |= {id(value): next(iter(known)) for value in node.outputs}
    return scales


def channels(model: ir.Model) -> dict[int, int]:
    """Return the channels of tensors, by id, if the weight of a convolution or an elementwise operator determines them."""
    sizes = {id(value): value.shape[1] for value in model.graph.inputs if value.shape is not None and value.shape.rank() == 4}
    found = {key: size for key, size in sizes.items() if isinstance(size, int)}
    normalized = {id(normalization.output): normalization.x for normalization in normalizations(model)}
    for node in model.graph:
        if node.op_type in CONVOLUTIONS:
            known = _output_channels(node)
        else:
            known = {found[id(value)] for value in _sources(node, normalized) if id(value) in found}
        if len(known) == 1:
            found |= {id(value): next(iter(known)) for value in node.outputs}
    return found


def _sources(node: ir.Node, normalized: Mapping[int, ir.Value]) -> Sequence[ir.Value | None]:
    """Return the tensors from which rows and channels pass on to the outputs of `node`; `normalized` maps outputs of normalizations."""
    x = normalized.get(id(node.outputs[0]))
    if x is not None:
        return [x]
    return node.inputs if node.op_type in _ELEMENTWISE | CONVOLUTIONS | {"Resize"} else []


def _output_channels(conv: ir.Node) -> set[int]:
    """Return the output channels of a convolution, from its weight; empty if that is not a constant or the Cast of one."""
    weight = conv.inputs[3 if conv.op_type == "QLinearConv" else 1]
    converted = None if weight is None else weight.producer()
    weight = weight if converted is None else converted.inputs[0]
    return set() if weight is None or weight.const_value is None else {dims(weight.const_value)[0]}


def _factor(node: ir.Node) -> Fraction | None:
    """Return the output rows per input row of a convolution or an upsampling; None if that is not a fixed ratio."""
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
    """Return kernel size, padding before, padding after and stride of a convolution, along the height."""
    kernel, pads = attribute(conv, "kernel_shape"), attribute(conv, "pads", (0, 0, 0, 0))
    return int(kernel[0]), int(pads[0]), int(pads[2]), int(attribute(conv, "strides", (1, 1))[0])


def halo(nodes: Sequence[ir.Node], rows: Mapping[str, int], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> int | None:
    """Return how many more rows `nodes` need above and below a band, in rows of the coarsest tensor.

    `rows` are the rows of each tensor per row of the coarsest one. None: an operator reads whole columns.
    """
    reach = {id(value): (0, 0) for value in inputs}
    for node in nodes:
        known = [reach[id(value)] for value in node.inputs if id(value) in reach]
        if not known:
            continue
        window = _reach(node, max(above for above, _ in known), max(below for _, below in known))
        if window is None:
            return None
        reach |= {id(value): window for value in node.outputs}
    return max(-(-number // rows[value.name or ""]) for value in outputs for number in reach.get(id(value), (0, 0)))


def _reach(node: ir.Node, above: int, below: int) -> tuple[int, int] | None:
    """Return the rows above and below that the output of `node` needs, if its inputs need `above` and `below`; None if all rows."""
    if node.op_type in _ELEMENTWISE:
        return above, below
    factor = _factor(node) if node.op_type in CONVOLUTIONS | {"Resize"} else None
    if factor is None:
        return None
    if node.op_type == "Resize":
        return above * int(factor), below * int(factor)
    kernel, before, _, stride = _window(node)
    return -(-(above + before) // stride), (below + kernel - 1 - before) // stride
