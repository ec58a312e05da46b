"""Passes for every target: standard ONNX in, simpler standard ONNX out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graphs.edit import (
    Pass,
    attribute,
    change_weight,
    constant,
    declined,
    dims,
    integers,
    nodes_of,
    producer,
    rank,
    replace,
    set_float,
    tidy,
)


def fold_transposed_weights(model: ir.Model) -> ir.Model:
    """MatMul(x, Transpose(weight)) → MatMul(x, weight stored transposed, under the same name)."""
    for value in list(model.graph.initializers.values()):
        users = [use.node for use in value.uses()]
        if (
            value.const_value is None
            or not users
            or any(node.op_type != "Transpose" or attribute(node, "perm") != (1, 0) for node in users)
        ):
            continue
        rows, columns = dims(value.const_value)
        change_weight(value, (columns, rows), np.transpose)
        for node in users:
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
    return model


def fold_padding(model: ir.Model) -> ir.Model:
    """Pad(zeros) then Conv → Conv with uneven padding, which every provider supports."""
    for conv in nodes_of(model, "Conv"):
        pad = producer(conv.inputs[0], "Pad")
        if pad is None:
            continue
        amounts = _zero_padding(pad)
        if amounts is None:
            declined(model).append(f"{conv.name}: the Pad before it is not constant zeros")
            continue
        if amounts.size != 8 or (len(pad.inputs) > 3 and pad.inputs[3] is not None) or amounts[[0, 1, 4, 5]].any() or (amounts < 0).any():
            declined(model).append(f"{conv.name}: the Pad before it does not only extend height and width")
            continue
        pads = np.array(attribute(conv, "pads", (0, 0, 0, 0)))
        conv.attributes["pads"] = ir.AttrInt64s("pads", [int(n) for n in pads + amounts[[2, 3, 6, 7]]])
        conv.replace_input_with(0, pad.inputs[0])
    return model


def _zero_padding(pad: ir.Node) -> NDArray[Any] | None:
    """Return the constant amounts by which `pad` extends a tensor with zeros; None if it does something else."""
    amounts = constant(pad.inputs[1])
    value = constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(1)
    if attribute(pad, "mode", "constant") != "constant" or value is None or value.any():
        return None
    return amounts


def simplify_reshapes(model: ir.Model) -> ir.Model:
    """Reshape to a computed shape → to a constant shape (0 copies, -1 infers), or to the shape of another tensor.

    Exporters compute every dimension from the shapes of the inputs: dozens of tiny nodes that every session has to fold.
    """
    by_shape: dict[tuple[str, ...], ir.Value] = {}
    for value in model.graph.inputs:
        _remember(by_shape, value)
    for node in list(model.graph):
        if node.op_type == "Reshape" and constant(node.inputs[1]) is None:
            _simplify_reshape(model, node, by_shape)
        for value in node.outputs:
            _remember(by_shape, value)
    return tidy(model)


def _remember(by_shape: dict[tuple[str, ...], ir.Value], value: ir.Value) -> None:
    if value.shape is not None:
        by_shape.setdefault(tuple(str(dim) for dim in value.shape), value)


def _simplify_reshape(model: ir.Model, node: ir.Node, by_shape: dict[tuple[str, ...], ir.Value]) -> None:
    source, target = node.inputs[0], node.outputs[0].shape
    if source is None or source.shape is None or target is None:
        declined(model).append(f"{node.name}: the shapes around this Reshape are unknown")
        return
    new, old = [str(dim) for dim in target], [str(dim) for dim in source.shape]
    numbers = [int(dim) if dim.isdigit() else 0 if axis < len(old) and old[axis] == dim else -1 for axis, dim in enumerate(new)]
    if numbers.count(-1) <= 1:
        shape = integers(model, *numbers)
    elif tuple(new) in by_shape:
        shape_node = ir.node("Shape", [by_shape[tuple(new)]])
        model.graph.insert_before(node, shape_node)
        shape = shape_node.outputs[0]
        shape.shape, shape.type = ir.Shape([len(new)]), ir.TensorType(ir.DataType.INT64)
    else:
        declined(model).append(f"{node.name}: no other tensor has the shape {new}")
        return
    node.replace_input_with(1, shape)
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def gemm_to_matmul(model: ir.Model) -> ir.Model:
    """Gemm with a constant weight → MatMul and Add, so that there is one kind of linear layer."""
    for node in nodes_of(model, "Gemm"):
        x, weight, *bias = node.inputs
        is_linear = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0 and not attribute(node, "transA", 0)
        if not is_linear or x is None or weight is None or weight.const_value is None:
            declined(model).append(f"{node.name}: this Gemm is not a linear layer with a constant weight")
            continue
        nodes: list[ir.Node] = []
        if attribute(node, "transB", 0):
            nodes.append(ir.node("Transpose", [weight], {"perm": [1, 0]}))
            weight = nodes[-1].outputs[0]
        nodes.append(ir.node("MatMul", [x, weight], name=node.name))
        nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        if bias and bias[0] is not None:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias[0]]))
        replace(node, nodes, nodes[-1].outputs[0])
    return model


def split_from_the_end(model: ir.Model) -> ir.Model:
    """Set the axis of a Split along the last axis to -1: files do not store ranks, and later passes look for the last axis."""
    for node in nodes_of(model, "Split"):
        if attribute(node, "axis", 0) == (rank(node.inputs[0]) or 0) - 1:
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
    return model


def merge_bias(model: ir.Model) -> ir.Model:
    """Add(bias, x) → Add(x, bias): providers match their fusions in this order."""
    for node in nodes_of(model, "Add"):
        first, second = node.inputs
        if first is not None and first.const_value is not None and second is not None and second.const_value is None:
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)
    return model


def pointwise_to_matmul(model: ir.Model) -> ir.Model:
    """A 1×1 Conv next to the Transpose between pixels and tokens → MatMul on the token side.

    In int8 graphs, the projections around transformer blocks then return float (a Conv returns int8) and keep their layout.
    """
    for conv in nodes_of(model, "Conv"):
        if not _pointwise(conv):
            continue
        users = list(conv.outputs[0].uses())
        after = users[0].node if len(users) == 1 else None
        before = producer(conv.inputs[0], "Transpose")
        if after is not None and after.op_type == "Transpose" and attribute(after, "perm") == (0, 2, 3, 1):
            transpose = ir.node("Transpose", [conv.inputs[0]], {"perm": [0, 2, 3, 1]})
            shape = None if conv.inputs[0] is None or conv.inputs[0].shape is None else conv.inputs[0].shape
            set_float(transpose.outputs[0], None if shape is None else [shape[axis] for axis in (0, 2, 3, 1)])
            nodes = _linear(conv, transpose.outputs[0])
            replace(after, [transpose, *nodes], nodes[-1].outputs[0])
        elif before is not None and attribute(before, "perm") == (0, 3, 1, 2) and len(before.outputs[0].uses()) == 1:
            nodes = _linear(conv, before.inputs[0])
            transpose = ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [0, 3, 1, 2]})
            replace(conv, [*nodes, transpose], transpose.outputs[0])
    return tidy(model)


def _pointwise(conv: ir.Node) -> bool:
    """Whether `conv` is a 1×1 convolution without stride, groups or padding, with a weight of its own."""
    weight = conv.inputs[1]
    no_stride = all(attribute(conv, name, 1) in {1, (1, 1)} for name in ("group", "strides", "dilations"))
    own_weight = (
        weight is not None and weight.const_value is not None and len(weight.uses()) == 1 and tuple(weight.const_value.shape)[2:] == (1, 1)
    )
    return no_stride and own_weight and not any(attribute(conv, "pads", ()))


def _linear(conv: ir.Node, x: ir.Value | None) -> list[ir.Node]:
    """Return MatMul (and Add) on the last axis of `x`; the weight of the 1×1 `conv` keeps its name."""
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    columns, rows = dims(weight.const_value)[:2]
    change_weight(weight, (rows, columns), lambda data: data.reshape(columns, rows).T)
    nodes = [ir.node("MatMul", [x, weight], name=conv.name)]
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        nodes.append(ir.node("Add", [nodes[0].outputs[0], conv.inputs[2]]))
    for node in nodes:
        set_float(node.outputs[0], None if x is None or x.shape is None else [*x.shape[:-1], columns])
    return nodes


COMMON: tuple[Pass, ...] = (gemm_to_matmul, fold_transposed_weights, fold_padding, simplify_reshapes, merge_bias)
