"""Operators that only a GPU has: written as functions while the export judges them, by name when they are published.

A fused node stands in the graph as a call of a function of the domain `DOMAIN`, whose body says in standard operators what ONNX
Runtime's CUDA and DirectML kernels compute (the sums in float32, as they do). So any runtime can run the fused graph, and it is
the fused graph that is recorded, observed, rounded and compared with torch. `release` then puts the names of ONNX Runtime's own
operators in the place of the calls and takes the functions away.
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

from .graph import MICROSOFT

DOMAIN = "diffusette.fused"
OPSET = 18
"""Of the functions' bodies."""
_Nodes = list[onnx.NodeProto]


def call(model: ir.Model, name: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], outputs: int = 1) -> ir.Node:
    """A node of the fused operator `name` (a key of `BODIES`) with the first of its outputs, not yet in the graph.

    Its function comes into `model`.
    """
    parameters, results, own, body = BODIES[name]
    kind = f"{name}.{outputs}"  # ONNX Runtime wants every output of a function to be there
    if (DOMAIN, kind, "") not in model.functions:
        opsets = [helper.make_opsetid("", OPSET)]
        made = helper.make_function(DOMAIN, kind, parameters.split(), results.split()[:outputs], body(), opsets, attributes=own.split())
        model.functions[DOMAIN, kind, ""] = ir.from_proto(made)
        model.graph.opset_imports[DOMAIN] = 1
    return ir.node(kind, inputs, attributes, domain=DOMAIN, num_outputs=outputs)


def kernel(node: ir.Node | onnx.NodeProto) -> str:
    """The name of the operator that `node` is, or is a call of."""
    return node.op_type.partition(".")[0]


def names(graph: Path) -> tuple[str, ...]:
    """The operators that the file `graph` calls as functions of ours."""
    model = onnx.ModelProto.FromString(graph.read_bytes())
    return tuple(sorted({kernel(node) for node in model.graph.node if node.domain == DOMAIN}))


def release(graph: Path) -> None:
    """Makes each call of a fused function in the file `graph` a node of ONNX Runtime's own operator.

    Weights beside the graph stay as they are.
    """
    model = onnx.ModelProto.FromString(graph.read_bytes())
    calls = [node for node in model.graph.node if node.domain == DOMAIN]
    if not calls:
        return
    for node in calls:
        node.domain, node.op_type = MICROSOFT, kernel(node)
        if node.op_type == "SkipLayerNormalization" and len(node.output) == 2:  # mean and deviation stand between, for training
            node.output[:] = [node.output[0], "", "", node.output[1]]
    for part in [part for part in model.functions if part.domain == DOMAIN]:
        model.functions.remove(part)
    versions = {one.domain: one.version for one in model.opset_import if one.domain != DOMAIN} | {MICROSOFT: 1}
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
    """The attribute `attribute` of the call, as a tensor."""
    node = helper.make_node("Constant", [], [name])
    node.attribute.append(onnx.AttributeProto(name=field, ref_attr_name=attribute, type=kind))
    return node


def _group_norm(x: str, *, last: bool) -> _Nodes:
    """Y = SiLU where `activation` is 1 of gamma · (x - mean) / √(variance + epsilon) + beta, over `groups` of channels."""
    turn = [_node("Transpose", "single", "first", perm=[0, 3, 1, 2])] if last else [_node("Identity", "single", "first")]
    back = [_node("Transpose", "joined", "placed", perm=[0, 2, 3, 1])] if last else [_node("Identity", "joined", "placed")]
    spread = [] if last else [_constant("each", [-1, 1, 1])]
    spread += [
        _node(*(("Identity", f"{name}") if last else ("Reshape", f"{name} each")), f"{name}_spread") for name in ("gamma32", "beta32")
    ]
    kinds = onnx.AttributeProto
    return [
        _node("Cast", x, "single", to=onnx.TensorProto.FLOAT),
        _node("Cast", "gamma", "gamma32", to=onnx.TensorProto.FLOAT),
        _node("Cast", "beta", "beta32", to=onnx.TensorProto.FLOAT),
        *turn,
        _parameter("groups_number", "groups", "value_int", cast("Any", kinds.INT)),
        _parameter("activation_number", "activation", "value_int", cast("Any", kinds.INT)),
        _parameter("least", "epsilon", "value_float", cast("Any", kinds.FLOAT)),
        *(_constant(name, [number]) for name, number in (("one", 1), ("keep", 0), ("rest", -1))),
        _node("Reshape", "groups_number one", "groups_vector"),
        _node("Concat", "keep groups_vector rest", "split", axis=0),
        _node("Reshape", "first split", "grouped"),
        _node("GlobalAveragePool", "grouped", "mean"),
        _node("Sub", "grouped mean", "centred"),
        _node("Mul", "centred centred", "square"),
        _node("GlobalAveragePool", "square", "variance"),
        _node("Add", "variance least", "positive"),
        _node("Sqrt", "positive", "deviation"),
        _node("Div", "centred deviation", "normal"),
        _node("Shape", "first", "whole"),
        _node("Reshape", "normal whole", "joined"),
        *back,
        *spread,
        _node("Mul", "placed gamma32_spread", "scaled"),
        _node("Add", "scaled beta32_spread", "plain"),
        _node("Sigmoid", "plain", "gate"),
        _node("Mul", "plain gate", "silu"),
        _node("Cast", "activation_number", "activated", to=onnx.TensorProto.BOOL),
        _node("Where", "activated silu plain", "result"),
        _node("CastLike", "result X", "Y"),
    ]


def _skip_group_norm() -> _Nodes:
    """GroupNorm of S = X + skip, on channels last; `skip` is (batch, channels)."""
    return [
        _constant("middle", [1, 2]),
        _node("Unsqueeze", "skip middle", "wide"),
        _node("Add", "X wide", "S"),
        *_group_norm("S", last=True),
    ]


def _skip_group_norm_whole() -> _Nodes:
    """GroupNorm of S = X + skip, on channels last; both of one shape."""
    return [_node("Add", "X skip", "S"), *_group_norm("S", last=True)]


def _skip_layer_norm(*, biased: bool) -> _Nodes:
    """LayerNormalization over the last axis of S = X + bias + skip."""
    return [
        _node("Add", "X bias", "moved") if biased else _node("Identity", "X", "moved"),
        _node("Add", "moved skip", "S"),
        _node("Cast", "S", "single", to=onnx.TensorProto.FLOAT),
        _node("Cast", "gamma", "gamma32", to=onnx.TensorProto.FLOAT),
        _node("Cast", "beta", "beta32", to=onnx.TensorProto.FLOAT),
        _layer_norm(),
        _node("CastLike", "normal X", "Y"),
    ]


def _layer_norm() -> onnx.NodeProto:
    node = _node("LayerNormalization", "single gamma32 beta32", "normal", axis=-1)
    node.attribute.append(onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=cast("Any", onnx.AttributeProto.FLOAT)))
    return node


def _bias_split_gelu() -> _Nodes:
    """Left half of (X + bias) times the exact GELU of its right half."""
    return [
        _node("Add", "X bias", "moved"),
        _node("Cast", "moved", "single", to=onnx.TensorProto.FLOAT),
        _node("Split", "single", "left right", axis=-1, num_outputs=2),
        *(_constant(name, np.float32(value)) for name, value in (("root", 2**0.5), ("one", 1.0), ("half", 0.5))),
        _node("Div", "right root", "ratio"),
        _node("Erf", "ratio", "curve"),
        _node("Add", "curve one", "above"),
        _node("Mul", "right above", "double"),
        _node("Mul", "double half", "gelu"),
        _node("Mul", "left gelu", "product"),
        _node("CastLike", "product X", "Y"),
    ]


def _bias_add() -> _Nodes:
    """X + bias + skip."""
    return [_node("Add", "X bias", "moved"), _node("Add", "moved skip", "Y")]


_NORM = "groups activation epsilon channels_last"
BODIES = {
    "GroupNorm": ("X gamma beta", "Y", _NORM, lambda: _group_norm("X", last=True)),
    "GroupNorm.first": ("X gamma beta", "Y", _NORM, lambda: _group_norm("X", last=False)),
    "SkipGroupNorm": ("X gamma beta skip", "Y S", _NORM, _skip_group_norm_whole),
    "SkipGroupNorm.vector": ("X gamma beta skip", "Y S", _NORM, _skip_group_norm),
    "SkipLayerNormalization": ("X skip gamma beta", "Y S", "epsilon", lambda: _skip_layer_norm(biased=False)),
    "SkipLayerNormalization.biased": ("X skip gamma beta bias", "Y S", "epsilon", lambda: _skip_layer_norm(biased=True)),
    "BiasSplitGelu": ("X bias", "Y", "", _bias_split_gelu),
    "BiasAdd": ("X bias skip", "Y", "", _bias_add),
}
"""Operator of ONNX Runtime, with a variant after a dot → inputs, outputs, attributes, what it computes."""
KERNELS = frozenset(name.partition(".")[0] for name in BODIES)
FLOAT_PLACES = {"GroupNorm": (1, 2), "SkipGroupNorm": (1, 2)}
"""Inputs that stay float32 in half precision: the CUDA kernel takes scale and shift in no other type."""
