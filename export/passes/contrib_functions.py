"""Operators that only GPU providers have: ONNX functions during the export, ONNX Runtime's operators in the published graph.

A fused node calls a function of the domain `DOMAIN`. The function's body computes, in standard operators, what ONNX Runtime's CUDA and
DirectML kernels compute, with sums in float32 like theirs. So any runtime can run the fused graph, and the export calibrates, rounds and
compares with torch the graph that it publishes. `release` then replaces the calls with ONNX Runtime's operators and removes the functions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from ..graphs.edit import MICROSOFT

DOMAIN = "diffusette.fused"
OPSET = 18
"""Opset of the function bodies."""
_Nodes = list[onnx.NodeProto]


def call(model: ir.Model, name: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], outputs: int = 1) -> ir.Node:
    """Return a node of the fused operator `name` (a key of `BODIES`) with its first `outputs` outputs, not yet in the graph.

    Adds its function to `model`.
    """
    parameters, results, attribute_names, body = BODIES[name]
    kind = f"{name}.{outputs}"  # ONNX Runtime requires every output of a function
    if (DOMAIN, kind, "") not in model.functions:
        opsets = [helper.make_opsetid("", OPSET)]
        function = helper.make_function(
            DOMAIN, kind, parameters.split(), results.split()[:outputs], body(), opsets, attributes=attribute_names.split()
        )
        model.functions[DOMAIN, kind, ""] = ir.from_proto(function)
        model.graph.opset_imports[DOMAIN] = 1
    return ir.node(kind, inputs, attributes, domain=DOMAIN, num_outputs=outputs)


def kernel(node: ir.Node | onnx.NodeProto) -> str:
    """Return the name of the operator that `node` is or calls as a function."""
    return node.op_type.partition(".")[0]


def names(graph: Path) -> tuple[str, ...]:
    """Return the operators that the file `graph` calls as functions of `DOMAIN`."""
    model = onnx.ModelProto.FromString(graph.read_bytes())
    return tuple(sorted({kernel(node) for node in model.graph.node if node.domain == DOMAIN}))


def release(graph: Path) -> None:
    """Replace each call of a fused function in the file `graph` with ONNX Runtime's operator. The weight file does not change.

    A graph that was cut from another may have functions that it does not call: they are removed too.
    """
    model = onnx.ModelProto.FromString(graph.read_bytes())
    functions = [function for function in model.functions if function.domain == DOMAIN]
    if not functions:
        return
    for node in [node for node in model.graph.node if node.domain == DOMAIN]:
        node.domain, node.op_type = MICROSOFT, kernel(node)
        if node.op_type == "SkipLayerNormalization" and len(node.output) == 2:  # outputs 1 and 2 are mean and deviation, for training
            node.output[:] = [node.output[0], "", "", node.output[1]]
    for function in functions:
        model.functions.remove(function)
    versions = {opset.domain: opset.version for opset in model.opset_import if opset.domain != DOMAIN} | {MICROSOFT: 1}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    partial = graph.with_name(f"{graph.name}.partial")
    with partial.open("wb") as file:
        file.write(model.SerializeToString(deterministic=True))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(graph)


def _node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def _constant(name: str, value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))


def _parameter(name: str, attribute: str, field: str, kind: onnx.AttributeProto.AttributeType) -> onnx.NodeProto:
    """Return a node that makes the attribute `attribute` of the call a tensor."""
    node = helper.make_node("Constant", [], [name])
    node.attribute.append(onnx.AttributeProto(name=field, ref_attr_name=attribute, type=kind))
    return node


def _group_norm(x: str, *, last: bool) -> _Nodes:
    """Y = gamma · (x - mean) / √(variance + epsilon) + beta over `groups` of channels, then SiLU if `activation` is 1.

    `last`: channels last, else channels first.
    """
    to_first = [_node("Transpose", "x32", "first", perm=[0, 3, 1, 2])] if last else [_node("Identity", "x32", "first")]
    back = [_node("Transpose", "joined", "ordered", perm=[0, 2, 3, 1])] if last else [_node("Identity", "joined", "ordered")]
    broadcast = [] if last else [_constant("per_channel", [-1, 1, 1])]
    broadcast += [
        _node(*(("Identity", f"{name}") if last else ("Reshape", f"{name} per_channel")), f"{name}_broadcast")
        for name in ("gamma32", "beta32")
    ]
    types = onnx.AttributeProto
    return [
        _node("Cast", x, "x32", to=onnx.TensorProto.FLOAT),
        _node("Cast", "gamma", "gamma32", to=onnx.TensorProto.FLOAT),
        _node("Cast", "beta", "beta32", to=onnx.TensorProto.FLOAT),
        *to_first,
        _parameter("groups_number", "groups", "value_int", cast("Any", types.INT)),
        _parameter("activation_number", "activation", "value_int", cast("Any", types.INT)),
        _parameter("epsilon_number", "epsilon", "value_float", cast("Any", types.FLOAT)),
        *(_constant(name, [number]) for name, number in (("one", 1), ("copy", 0), ("infer", -1))),
        _node("Reshape", "groups_number one", "groups_vector"),
        _node("Concat", "copy groups_vector infer", "split", axis=0),
        _node("Reshape", "first split", "grouped"),
        _node("GlobalAveragePool", "grouped", "mean"),
        _node("Sub", "grouped mean", "centred"),
        _node("Mul", "centred centred", "square"),
        _node("GlobalAveragePool", "square", "variance"),
        _node("Add", "variance epsilon_number", "stable_variance"),
        _node("Sqrt", "stable_variance", "deviation"),
        _node("Div", "centred deviation", "normalized"),
        _node("Shape", "first", "shape"),
        _node("Reshape", "normalized shape", "joined"),
        *back,
        *broadcast,
        _node("Mul", "ordered gamma32_broadcast", "scaled"),
        _node("Add", "scaled beta32_broadcast", "affine"),
        _node("Sigmoid", "affine", "gate"),
        _node("Mul", "affine gate", "silu"),
        _node("Cast", "activation_number", "activated", to=onnx.TensorProto.BOOL),
        _node("Where", "activated silu affine", "result"),
        _node("CastLike", "result X", "Y"),
    ]


def _skip_group_norm_vector() -> _Nodes:
    """GroupNorm of S = X + skip, on channels last; `skip` is (batch, channels)."""
    return [
        _constant("axes", [1, 2]),
        _node("Unsqueeze", "skip axes", "skip4"),
        _node("Add", "X skip4", "S"),
        *_group_norm("S", last=True),
    ]


def _skip_group_norm() -> _Nodes:
    """GroupNorm of S = X + skip, on channels last; X and skip have the same shape."""
    return [_node("Add", "X skip", "S"), *_group_norm("S", last=True)]


def _skip_layer_norm(*, biased: bool) -> _Nodes:
    """LayerNormalization over the last axis of S = X + bias + skip."""
    return [
        _node("Add", "X bias", "biased") if biased else _node("Identity", "X", "biased"),
        _node("Add", "biased skip", "S"),
        _node("Cast", "S", "x32", to=onnx.TensorProto.FLOAT),
        _node("Cast", "gamma", "gamma32", to=onnx.TensorProto.FLOAT),
        _node("Cast", "beta", "beta32", to=onnx.TensorProto.FLOAT),
        _layer_norm(),
        _node("CastLike", "normalized X", "Y"),
    ]


def _layer_norm() -> onnx.NodeProto:
    node = _node("LayerNormalization", "x32 gamma32 beta32", "normalized", axis=-1)
    node.attribute.append(onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=cast("Any", onnx.AttributeProto.FLOAT)))
    return node


def _bias_split_gelu() -> _Nodes:
    """Left half of (X + bias) times the exact GELU of its right half."""
    return [
        _node("Add", "X bias", "biased"),
        _node("Cast", "biased", "x32", to=onnx.TensorProto.FLOAT),
        _node("Split", "x32", "left right", axis=-1, num_outputs=2),
        *(_constant(name, np.float32(value)) for name, value in (("root", 2**0.5), ("one", 1.0), ("half", 0.5))),
        _node("Div", "right root", "scaled"),
        _node("Erf", "scaled", "erf"),
        _node("Add", "erf one", "shifted"),
        _node("Mul", "right shifted", "double"),
        _node("Mul", "double half", "gelu"),
        _node("Mul", "left gelu", "product"),
        _node("CastLike", "product X", "Y"),
    ]


def _bias_add() -> _Nodes:
    """X + bias + skip."""
    return [_node("Add", "X bias", "biased"), _node("Add", "biased skip", "Y")]


_NORM = "groups activation epsilon channels_last"
BODIES = {
    "GroupNorm": ("X gamma beta", "Y", _NORM, lambda: _group_norm("X", last=True)),
    "GroupNorm.first": ("X gamma beta", "Y", _NORM, lambda: _group_norm("X", last=False)),
    "SkipGroupNorm": ("X gamma beta skip", "Y S", _NORM, _skip_group_norm),
    "SkipGroupNorm.vector": ("X gamma beta skip", "Y S", _NORM, _skip_group_norm_vector),
    "SkipLayerNormalization": ("X skip gamma beta", "Y S", "epsilon", lambda: _skip_layer_norm(biased=False)),
    "SkipLayerNormalization.biased": ("X skip gamma beta bias", "Y S", "epsilon", lambda: _skip_layer_norm(biased=True)),
    "BiasSplitGelu": ("X bias", "Y", "", _bias_split_gelu),
    "BiasAdd": ("X bias skip", "Y", "", _bias_add),
}
"""ONNX Runtime's operator, with a variant after the dot → inputs, outputs, attribute names, function that returns the body."""
KERNELS = frozenset(name.partition(".")[0] for name in BODIES)
"""Names of the fused operators."""
FLOAT_INPUTS = {"GroupNorm": (1, 2), "SkipGroupNorm": (1, 2)}
"""Numbers of the inputs that stay float32 in half precision: the CUDA kernels require gamma and beta in float32."""
