"""Graph editing: the helpers that passes are built from.

A pass is `Model -> Model`: it changes the model in place and returns it. A pass that finds its pattern but cannot apply records the reason
in `declined(model)`. Weights stay lazy: a pass that changes a weight wraps its reader.
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
"""Suffixes of initializers that hold the factors a weight's channels were multiplied by. Merging a LoRA needs them
(`runtime/adapters/merge_weights.py`)."""


def apply(model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
    """Apply `passes` in order, then remove unused nodes and initializers."""
    for run in passes:
        model = run(model)
    return tidy(model)


def declined(model: ir.Model) -> list[str]:
    """Return the reasons why passes declined, a list to append to."""
    meta: Any = model.meta
    return meta.setdefault("declined", [])


def tidy(model: ir.Model) -> ir.Model:
    """Remove unused nodes and initializers, and merge equal expressions.

    The channel factors of a weight, which no node uses, stay as long as the weight.
    """
    before = dict(model.graph.initializers)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    for value in factors(before, model.graph.initializers):
        model.graph.initializers.add(value)
    return model


def factors(initializers: Mapping[str, ir.Value], weights: Collection[str]) -> list[ir.Value]:
    """Return the initializers that hold the channel factors of `weights` (names)."""
    layers = {name.rpartition(".weight")[0] for name in weights}
    return [value for name, value in initializers.items() if name.endswith(FACTORS) and name.rpartition(".")[0] in layers]


def producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """Return the node that computes `value` if its type is `kind`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the elements of a small constant; None for computed values and weights."""
    if value is None or value.const_value is None or value.const_value.size > 64:
        return None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer or the Cast of one."""
    cast = producer(value, "Cast")
    value = value if cast is None else cast.inputs[0]
    return value is not None and value.is_initializer()


def between(model: ir.Model, inputs: Collection[str], outputs: Collection[str]) -> ir.Graph:
    """Return the part of `model` from the tensors `inputs` to the tensors `outputs`; initializers keep the model's order."""
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    for name in [name for name in model.graph.initializers if name in graph.initializers]:  # `extract` reorders them
        graph.initializers[name] = graph.initializers.pop(name)
    return graph


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return the value of the attribute `name` of `node`, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def replace(old: ir.Node, nodes: Sequence[ir.Node], *results: ir.Value) -> None:
    """Replace `old` with `nodes`; their outputs `results` replace its outputs and get their names, shapes and types."""
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
    """Return the initializer `name`; create it from `data` if it does not exist."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(data, name=name) if isinstance(data, np.ndarray) else data
    value = ir.Value(name=name, shape=ir.Shape(dims(tensor)), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    return value


def dims(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a constant."""
    return tuple(int(size) for size in tensor.shape)


def integers(model: ir.Model, *numbers: int) -> ir.Value:
    """Return an int64 vector as an initializer; equal vectors share one."""
    return initializer(model, "ints" + "".join(f"_{number}" for number in numbers).replace("-", "m"), np.array(numbers, np.int64))


def rank(value: ir.Value | None) -> int | None:
    """Return the number of dimensions; None if unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def nodes_of(model: ir.Model, kind: str) -> list[ir.Node]:
    """Return the nodes of type `kind`, in order."""
    return [node for node in model.graph if node.op_type == kind]


def change_weight(
    value: ir.Value, shape: Sequence[int], change: Callable[[NDArray[Any]], NDArray[Any]], dtype: ir.DataType | None = None
) -> None:
    """Replace the data of the initializer `value` with `change(data)`, of the given shape and dtype, computed on access."""
    old = value.const_value
    assert old is not None
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(change(old.numpy())), name=value.name),
        dtype=dtype or old.dtype,
        shape=ir.Shape(shape),
        name=value.name,
    )
    value.shape, value.dtype = ir.Shape(shape), dtype or old.dtype


def set_float(value: ir.Value, shape: Sequence[Any] | None) -> None:
    """Set the type of `value` to float32 and its shape to `shape` (None: unknown)."""
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = None if shape is None else ir.Shape(list(shape))


def lazy(name: str, shape: Sequence[int], read: Callable[[], NDArray[Any]], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.LazyTensor:
    """Return a tensor that calls `read` on each access and caches nothing."""
    return ir.LazyTensor(lambda: ir.tensor(read(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
