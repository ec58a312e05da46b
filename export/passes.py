"""Rewriting graphs for a provider: small passes, each `Model -> Model`, in a tuple per target.

A pass changes the model in place and gives it back. Where it meets what it was made for and cannot do it, it says why
in `declined(model)`. Weights stay lazy: a pass that changes one wraps its reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

Pass = Callable[[ir.Model], ir.Model]
MICROSOFT = "com.microsoft"


def apply(model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
    """`model` after all of `passes`, then without what nothing uses."""
    for one in passes:
        model = one(model)
    return tidy(model)


def declined(model: ir.Model) -> list[str]:
    """What passes could not do, and why."""
    return model.meta.setdefault("declined", [])


def tidy(model: ir.Model) -> ir.Model:
    """Drops nodes and initializers that nothing uses, and computes equal things once."""
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return model


def producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of type `kind` that makes `value`, if there is one."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """A small constant's elements; None for what is computed, and for weights."""
    if value is None or value.const_value is None or value.const_value.size > 64:
        return None
    return value.const_value.numpy()


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The attribute `name` of `node`, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def replace(old: ir.Node, nodes: Sequence[ir.Node], new: ir.Value, place: int = 0) -> None:
    """Puts `nodes` where `old` is; `new`, made by the last of them, stands for its output number `place`."""
    graph, value = old.graph, old.outputs[place]
    assert isinstance(graph, ir.Graph)
    graph.insert_before(old, nodes)
    new.shape, new.type = value.shape, value.type
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = new
    name, value.name = value.name, None
    new.name = name
    value.replace_all_uses_with(new)
    graph.remove(old, safe=True)


def initializer(model: ir.Model, name: str, data: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """The initializer called `name`; made of `data` unless there is one already."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(data, name=name) if isinstance(data, np.ndarray) else data
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    return value


def integers(model: ir.Model, *numbers: int) -> ir.Value:
    """A vector of int64, shared by all that ask for the same."""
    return initializer(model, "ints" + "".join(f"_{number}" for number in numbers).replace("-", "m"), np.array(numbers, np.int64))


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, if it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def nodes_of(model: ir.Model, kind: str) -> list[ir.Node]:
    """All nodes of a type, in order."""
    return [node for node in model.graph if node.op_type == kind]


# Passes that any target can take


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
        old = value.const_value
        rows, columns = old.shape
        value.const_value = ir.LazyTensor(
            lambda old=old, name=value.name: ir.tensor(np.ascontiguousarray(old.numpy().T), name=name),
            dtype=old.dtype,
            shape=ir.Shape((columns, rows)),
            name=value.name,
        )
        value.shape = ir.Shape((columns, rows))
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
        if len(pad.inputs) > 3 and pad.inputs[3] is not None or amounts.size != 8 or amounts[[0, 1, 4, 5]].any() or (amounts < 0).any():
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
            _shaped(transpose.outputs[0], conv.inputs[0], (0, 2, 3, 1))
            nodes = _linear(model, conv, transpose.outputs[0])
            replace(after, [transpose, *nodes], nodes[-1].outputs[0])
        elif before is not None and attribute(before, "perm") == (0, 3, 1, 2) and len(before.outputs[0].uses()) == 1:
            nodes = _linear(model, conv, before.inputs[0])
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


def _linear(model: ir.Model, conv: ir.Node, x: ir.Value | None) -> list[ir.Node]:
    """MatMul (and Add) on the last axis of `x`, with the weight of the 1×1 `conv` under its own name."""
    weight, old = conv.inputs[1], conv.inputs[1].const_value if conv.inputs[1] is not None else None
    assert weight is not None
    assert old is not None
    rows, columns = int(old.shape[1]), int(old.shape[0])
    weight.const_value = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(old.numpy().reshape(columns, rows).T), name=weight.name),
        dtype=old.dtype,
        shape=ir.Shape((rows, columns)),
        name=weight.name,
    )
    weight.shape = ir.Shape((rows, columns))
    nodes = [ir.node("MatMul", [x, weight], name=conv.name)]
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        nodes.append(ir.node("Add", [nodes[0].outputs[0], conv.inputs[2]]))
    for node in nodes:
        if x is not None and x.shape is not None:
            node.outputs[0].shape = ir.Shape([*x.shape[:-1], columns])
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return nodes


def _shaped(value: ir.Value, like: ir.Value | None, perm: Sequence[int]) -> None:
    """Gives `value` the type of `like` and its shape, permuted."""
    if like is not None and like.shape is not None:
        value.shape, value.type = ir.Shape([like.shape[axis] for axis in perm]), like.type


# Passes for providers with contrib operators


def fuse_attention(model: ir.Model) -> ir.Model:
    """Attention on (batch, heads, tokens, width) between transposes → com.microsoft.MultiHeadAttention on (batch, tokens, channels).

    CPU and CUDA have flash kernels for it, and the four transposes go away.
    """
    for node in nodes_of(model, "Attention"):
        parts = [_before_heads(value) for value in node.inputs[:3]]
        after = _after_heads(node.outputs[0])
        if len(node.inputs) > 3 and any(value is not None for value in node.inputs[3:]):
            declined(model).append(f"{node.name}: attention with a mask or a cache stays as it is")
            continue
        if attribute(node, "softcap", 0.0):
            declined(model).append(f"{node.name}: MultiHeadAttention has no soft cap")
            continue
        if None in parts or after is None:
            declined(model).append(f"{node.name}: heads are not split and joined by Reshape and Transpose around it")
            continue
        heads = node.inputs[0].shape[1] if node.inputs[0] is not None and node.inputs[0].shape is not None else None
        if not isinstance(heads, int):
            declined(model).append(f"{node.name}: the number of heads is not known")
            continue
        attributes: dict[str, Any] = {"num_heads": heads}
        if attribute(node, "scale") is not None:
            attributes["scale"] = attribute(node, "scale")
        if attribute(node, "is_causal", 0):
            attributes["unidirectional"] = 1
        new = ir.node("MultiHeadAttention", parts, attributes, domain=MICROSOFT, name=node.name)
        model.graph.opset_imports[MICROSOFT] = 1
        replace(after, [new], new.outputs[0])
    return tidy(model)


def _before_heads(value: ir.Value | None) -> ir.Value | None:
    """The (batch, tokens, channels) tensor that Reshape and Transpose split into heads."""
    transpose = producer(value, "Transpose")
    if transpose is None or attribute(transpose, "perm") != (0, 2, 1, 3):
        return None
    reshape = producer(transpose.inputs[0], "Reshape")
    source = None if reshape is None else reshape.inputs[0]
    return source if rank(source) == 3 else None


def _after_heads(value: ir.Value) -> ir.Node | None:
    """The Reshape that joins the heads again."""
    users = list(value.uses())
    if len(users) != 1 or users[0].node.op_type != "Transpose" or attribute(users[0].node, "perm") != (0, 2, 1, 3):
        return None
    users = list(users[0].node.outputs[0].uses())
    if len(users) != 1 or users[0].node.op_type != "Reshape" or rank(users[0].node.outputs[0]) != 3:
        return None
    return users[0].node


def fuse_silu(model: ir.Model) -> ir.Model:
    """Mul(x, Sigmoid(α·x)) → com.microsoft.QuickGelu with α: SiLU where α is 1, CLIP's quick GELU where it is 1.702."""
    for mul in nodes_of(model, "Mul"):
        for x, gate in (mul.inputs, mul.inputs[::-1]):
            sigmoid = producer(gate, "Sigmoid")
            if sigmoid is None or len(sigmoid.outputs[0].uses()) != 1:
                continue
            inner, alpha = sigmoid.inputs[0], 1.0
            scaled = producer(inner, "Mul")
            if inner is not x and scaled is not None:
                factors = [constant(value) for value in scaled.inputs]
                known = next((factor for factor in factors if factor is not None and factor.size == 1), None)
                if known is None or x not in scaled.inputs:
                    continue
                inner, alpha = x, float(known.reshape(()))
            if inner is not x or x is None:
                continue
            new = ir.node("QuickGelu", [x], {"alpha": alpha}, domain=MICROSOFT, name=mul.name)
            model.graph.opset_imports[MICROSOFT] = 1
            replace(mul, [new], new.outputs[0])
            break
    return tidy(model)


def lower_group_norm(model: ir.Model) -> ir.Model:
    """GroupNormalization → InstanceNormalization over (group × pixels), then scale and shift per channel.

    ORT's CPU provider has no GroupNormalization kernel and expands it into eight float operators with casts; this form
    takes 0.6 of the time (facts: 1.2 against 2.1 ms at (1, 320, 64, 64)).
    """
    for node in nodes_of(model, "GroupNormalization"):
        x, scale, bias = node.inputs
        if x is None or scale is None or bias is None or x.shape is None or scale.shape is None or len(scale.shape) != 1:
            declined(model).append(f"{node.name}: the shapes around this GroupNormalization are not known")
            continue
        groups, axes = attribute(node, "num_groups"), len(x.shape) - 2
        ones, zeros = (
            initializer(model, f"ones_{groups}", np.ones(groups, np.float32)),
            initializer(model, f"zeros_{groups}", np.zeros(groups, np.float32)),
        )
        split = ir.node("Reshape", [x, integers(model, 0, groups, -1)])
        norm = ir.node(
            "InstanceNormalization", [split.outputs[0], ones, zeros], {"epsilon": attribute(node, "epsilon", 1e-5)}, name=node.name
        )
        shape = ir.node("Shape", [x])
        joined = ir.node("Reshape", [norm.outputs[0], shape.outputs[0]])
        scaled = ir.node("Mul", [joined.outputs[0], _per_channel(model, scale, axes)])
        shifted = ir.node("Add", [scaled.outputs[0], _per_channel(model, bias, axes)])
        replace(node, [split, norm, shape, joined, scaled, shifted], shifted.outputs[0])
    return tidy(model)


def _per_channel(model: ir.Model, value: ir.Value, axes: int) -> ir.Value:
    """The vector `value` in the shape (channels, 1, 1), under the same name where nothing else uses it."""
    old = value.const_value
    assert old is not None
    shape = (int(np.prod(old.shape)), *(1,) * axes)
    name = f"{value.name}" if len(value.uses()) == 1 else f"{value.name}.per_channel"
    tensor = ir.LazyTensor(lambda: ir.tensor(old.numpy().reshape(shape), name=name), dtype=old.dtype, shape=ir.Shape(shape), name=name)
    if name != value.name:
        return initializer(model, name, tensor)
    value.const_value, value.shape = tensor, tensor.shape
    return value


COMMON: tuple[Pass, ...] = (gemm_to_matmul, fold_transposed_weights, fold_padding, simplify_reshapes, merge_bias)
CPU: tuple[Pass, ...] = (*COMMON, pointwise_to_matmul, fuse_attention, fuse_silu, lower_group_norm)
TARGETS: dict[str, tuple[Pass, ...]] = {"cpu": CPU}
