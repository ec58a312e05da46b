"""Passes that every target takes: plain ONNX in, simpler plain ONNX out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .graph import Pass, attribute, changed_weight, constant, declined, dims, integers, nodes_of, producer, rank, replace, tidy, typed


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
        changed_weight(value, (columns, rows), np.transpose)
        for node in users:
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
    return model


def fold_padding(model: ir.Model) -> ir.Model:
    """Pad(zeros) then Conv → Conv with uneven padding, which every provider has."""
    for conv in nodes_of(model, "Conv"):
        pad = producer(conv.inputs[0], "Pad")
        if pad is None:
            continue
        amounts, value = (
            constant(pad.inputs[1]),
            constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(1),
        )
        if attribute(pad, "mode", "constant") != "constant" or amounts is None or value is None or value.any():
            declined(model).append(f"{conv.name}: the padding before it is not a constant of zeros")
            continue
        if amounts.size != 8 or (len(pad.inputs) > 3 and pad.inputs[3] is not None) or amounts[[0, 1, 4, 5]].any() or (amounts < 0).any():
            declined(model).append(f"{conv.name}: the padding before it is not of height and width alone")
            continue
        own = np.array(attribute(conv, "pads", (0, 0, 0, 0)))
        conv.attributes["pads"] = ir.AttrInt64s("pads", [int(n) for n in own + amounts[[2, 3, 6, 7]]])
        conv.replace_input_with(0, pad.inputs[0])
    return model


def simplify_reshapes(model: ir.Model) -> ir.Model:
    """Reshape to a computed shape → to constants (0 keeps, -1 is the rest), or to the shape that another tensor has.

    Exporters compute every dimension from the inputs' shapes; dozens of tiny nodes that every session has to fold.
    """
    alike: dict[tuple[str, ...], ir.Value] = {}
    for value in model.graph.inputs:
        _remember(alike, value)
    for node in list(model.graph):
        if node.op_type == "Reshape" and constant(node.inputs[1]) is None:
            _simplify_reshape(model, node, alike)
        for value in node.outputs:
            _remember(alike, value)
    return tidy(model)


def _remember(alike: dict[tuple[str, ...], ir.Value], value: ir.Value) -> None:
    if value.shape is not None:
        alike.setdefault(tuple(str(dim) for dim in value.shape), value)


def _simplify_reshape(model: ir.Model, node: ir.Node, alike: dict[tuple[str, ...], ir.Value]) -> None:
    source, target = node.inputs[0], node.outputs[0].shape
    if source is None or source.shape is None or target is None:
        declined(model).append(f"{node.name}: the shapes around this Reshape are not known")
        return
    wanted, given = [str(dim) for dim in target], [str(dim) for dim in source.shape]
    numbers = [int(dim) if dim.isdigit() else 0 if axis < len(given) and given[axis] == dim else -1 for axis, dim in enumerate(wanted)]
    if numbers.count(-1) <= 1:
        shape = integers(model, *numbers)
    elif tuple(wanted) in alike:
        ask = ir.node("Shape", [alike[tuple(wanted)]])
        model.graph.insert_before(node, ask)
        shape = ask.outputs[0]
        shape.shape, shape.type = ir.Shape([len(wanted)]), ir.TensorType(ir.DataType.INT64)
    else:
        declined(model).append(f"{node.name}: no other tensor has the shape {wanted}")
        return
    node.replace_input_with(1, shape)
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def gemm_to_matmul(model: ir.Model) -> ir.Model:
    """Gemm with a constant weight → MatMul and Add, the weight transposed where it was not: one kind of linear layer."""
    for node in nodes_of(model, "Gemm"):
        x, weight, *bias = node.inputs
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0 and not attribute(node, "transA", 0)
        if not plain or x is None or weight is None or weight.const_value is None:
            declined(model).append(f"{node.name}: this Gemm is more than a linear layer")
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
    """Split along the last axis says so by -1: ranks are not written into files, and later passes want to know."""
    for node in nodes_of(model, "Split"):
        if attribute(node, "axis", 0) == (rank(node.inputs[0]) or 0) - 1:
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
    return model


def merge_bias(model: ir.Model) -> ir.Model:
    """Add(bias, x) → Add(x, bias): one order, so that providers find their fusions."""
    for node in nodes_of(model, "Add"):
        first, second = node.inputs
        if first is not None and first.const_value is not None and second is not None and second.const_value is None:
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)
    return model


def pointwise_to_matmul(model: ir.Model) -> ir.Model:
    """A 1×1 Conv beside the transpose that turns pixels into tokens, or back → MatMul on the tokens' side of it.

    So the projections around transformer blocks give float in 8-bit graphs (a Conv gives 8 bit), and keep their layout.
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
            typed(transpose.outputs[0], None if shape is None else [shape[axis] for axis in (0, 2, 3, 1)])
            nodes = _linear(conv, transpose.outputs[0])
            replace(after, [transpose, *nodes], nodes[-1].outputs[0])
        elif before is not None and attribute(before, "perm") == (0, 3, 1, 2) and len(before.outputs[0].uses()) == 1:
            nodes = _linear(conv, before.inputs[0])
            transpose = ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [0, 3, 1, 2]})
            replace(conv, [*nodes, transpose], transpose.outputs[0])
    return tidy(model)


def _pointwise(conv: ir.Node) -> bool:
    weight = conv.inputs[1]
    plain = all(attribute(conv, name, 1) in {1, (1, 1)} for name in ("group", "strides", "dilations"))
    alone = (
        weight is not None and weight.const_value is not None and len(weight.uses()) == 1 and tuple(weight.const_value.shape)[2:] == (1, 1)
    )
    return plain and alone and not any(attribute(conv, "pads", ()))


def _linear(conv: ir.Node, x: ir.Value | None) -> list[ir.Node]:
    """MatMul (and Add) on the last axis of `x`, with the weight of the 1×1 `conv` under its own name."""
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    columns, rows = dims(weight.const_value)[:2]
    changed_weight(weight, (rows, columns), lambda data: data.reshape(columns, rows).T)
    nodes = [ir.node("MatMul", [x, weight], name=conv.name)]
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        nodes.append(ir.node("Add", [nodes[0].outputs[0], conv.inputs[2]]))
    for node in nodes:
        typed(node.outputs[0], None if x is None or x.shape is None else [*x.shape[:-1], columns])
    return nodes


COMMON: tuple[Pass, ...] = (gemm_to_matmul, fold_transposed_weights, fold_padding, simplify_reshapes, merge_bias)
