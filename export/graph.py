"""Handling graphs: what passes are made of.

A pass is `Model -> Model`. It changes the model in place and gives it back; where it meets what it was made for and cannot
do it, it says why in `declined(model)`. Weights stay lazy: a pass that changes one wraps its reader.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

Pass = Callable[[ir.Model], ir.Model]
MICROSOFT = "com.microsoft"
FACTORS = (".output_factors", ".input_factors")
"""End the names of what the channels of a weight were multiplied with, which a LoRA has to know (`runtime/merge.py`)."""


def apply(model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
    """`model` after all of `passes`, then without what nothing uses."""
    for one in passes:
        model = one(model)
    return tidy(model)


def declined(model: ir.Model) -> list[str]:
    """What passes could not do, and why."""
    meta: Any = model.meta
    return meta.setdefault("declined", [])


def tidy(model: ir.Model) -> ir.Model:
    """Drops nodes and initializers that nothing uses, and computes equal things once. No node uses the factors of a weight: they stay
    as long as it does.
    """
    known = dict(model.graph.initializers)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    for value in factors(known, model.graph.initializers):
        model.graph.initializers.add(value)
    return model


def factors(known: Mapping[str, ir.Value], weights: Collection[str]) -> list[ir.Value]:
    """Those of `known` that belong to one of `weights`: what its channels were multiplied with."""
    left = {name.rpartition(".weight")[0] for name in weights}
    return [value for name, value in known.items() if name.endswith(FACTORS) and name.rpartition(".")[0] in left]


def producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of type `kind` that makes `value`, if there is one."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """A small constant's elements; None for what is computed, and for weights."""
    if value is None or value.const_value is None or value.const_value.size > 64:
        return None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer, or one that is widened."""
    made = producer(value, "Cast")
    value = value if made is None else made.inputs[0]
    return value is not None and value.is_initializer()


def between(model: ir.Model, inputs: Collection[str], outputs: Collection[str]) -> ir.Graph:
    """What of `model` lies between tensors of these names, initializers in the order of the model."""
    found = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    for name in [name for name in model.graph.initializers if name in found.initializers]:  # it gives them in an order of its own
        found.initializers[name] = found.initializers.pop(name)
    return found


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The attribute `name` of `node`, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def replace(old: ir.Node, nodes: Sequence[ir.Node], *results: ir.Value) -> None:
    """Puts `nodes` where `old` is; `results`, made by them, stand for its outputs and take their names."""
    owner = old.graph
    assert isinstance(owner, ir.Graph)
    owner.insert_before(old, nodes)
    for value, new in zip(old.outputs, results, strict=True):
        new.shape, new.type = value.shape, value.type
        name, value.name = value.name, None
        new.name = name
        value.replace_all_uses_with(new, replace_graph_outputs=True)
    owner.remove(old, safe=True)


def initializer(model: ir.Model, name: str, data: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """The initializer called `name`; made of `data` unless there is one already."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(data, name=name) if isinstance(data, np.ndarray) else data
    value = ir.Value(name=name, shape=ir.Shape(dims(tensor)), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    return value


def dims(tensor: Any) -> tuple[int, ...]:
    """The shape of a constant."""
    return tuple(int(size) for size in tensor.shape)


def integers(model: ir.Model, *numbers: int) -> ir.Value:
    """A vector of int64, shared by all that ask for the same."""
    return initializer(model, "ints" + "".join(f"_{number}" for number in numbers).replace("-", "m"), np.array(numbers, np.int64))


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, if it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def nodes_of(model: ir.Model, kind: str) -> list[ir.Node]:
    """All nodes of a type, in order."""
    return [node for node in model.graph if node.op_type == kind]


def changed_weight(
    value: ir.Value, shape: Sequence[int], change: Callable[[NDArray[Any]], NDArray[Any]], dtype: ir.DataType | None = None
) -> None:
    """Makes the initializer `value` hold `change` of what it held, in another shape or dtype, still unread."""
    old = value.const_value
    assert old is not None
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(change(old.numpy())), name=value.name),
        dtype=dtype or old.dtype,
        shape=ir.Shape(shape),
        name=value.name,
    )
    value.shape, value.dtype = ir.Shape(shape), dtype or old.dtype


def typed(value: ir.Value, shape: Sequence[Any] | None) -> None:
    """Says that `value` is float32, of `shape` where that is known."""
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = None if shape is None else ir.Shape(list(shape))


def lazy(name: str, shape: Sequence[int], read: Callable[[], NDArray[Any]], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.LazyTensor:
    """A tensor that calls `read` each time it is asked for, and keeps nothing."""
    return ir.LazyTensor(lambda: ir.tensor(read(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
