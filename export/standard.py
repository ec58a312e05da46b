"""Passes towards standard ONNX of an older opset, for runtimes that know no contrib operators."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir

from ..models.errors import RequestError
from .graph import MICROSOFT, Pass, attribute, declined, initializer, integers, nodes_of, replace, tidy


def decompose_attention(model: ir.Model) -> ir.Model:
    """Attention → MatMul, Softmax, MatMul; where it is causal, with a triangle of -infinity in between."""
    for node in nodes_of(model, "Attention"):
        q, k, v = node.inputs[:3]
        if q is None or k is None or v is None or any(value is not None for value in node.inputs[3:]) or attribute(node, "softcap", 0.0):
            declined(model).append(f"{node.name}: attention with a mask, a cache or a soft cap stays as it is")
            continue
        width = None if q.shape is None else q.shape[3]
        if not isinstance(width, int):
            declined(model).append(f"{node.name}: the width of a head is not known")
            continue
        scale = attribute(node, "scale") or width**-0.5
        turned = ir.node("Transpose", [k], {"perm": [0, 1, 3, 2]})
        scaled = ir.node("Mul", [q, initializer(model, f"scale_{scale:.8g}", np.array(scale, np.float32))])
        scores = ir.node("MatMul", [scaled.outputs[0], turned.outputs[0]])
        nodes = [turned, scaled, scores]
        if attribute(node, "is_causal", 0):
            nodes += _causal(model, scores.outputs[0])
        weights = ir.node("Softmax", [nodes[-1].outputs[0]], {"axis": -1})
        result = ir.node("MatMul", [weights.outputs[0], v], name=node.name)
        replace(node, [*nodes, weights, result], result.outputs[0])
    return tidy(model)


def _causal(model: ir.Model, scores: ir.Value) -> list[ir.Node]:
    """Nodes that take what lies ahead out of `scores` (batch, heads, queries, keys)."""
    size = ir.node("Shape", [scores], {"start": 2, "end": 4})
    least = ir.tensor(np.array([np.finfo(np.float16).min], np.float32))  # far enough, and a number in half precision too
    filled = ir.node("ConstantOfShape", [size.outputs[0]], {"value": least})
    ahead = ir.node("Trilu", [filled.outputs[0], integers(model, 1)], {"upper": 1})
    return [size, filled, ahead, ir.node("Add", [scores, ahead.outputs[0]])]


def expand_gelu(model: ir.Model) -> ir.Model:
    """Gelu (opset 20) → x/2 · (1 + erf(x/√2)), which every runtime finds again."""
    for node in nodes_of(model, "Gelu"):
        x = node.inputs[0]
        if attribute(node, "approximate", "none") != "none":
            declined(model).append(f"{node.name}: only the exact Gelu is expanded")
            continue
        root, one, half = (
            initializer(model, name, np.array(value, np.float32)) for name, value in (("root_2", 2**0.5), ("one", 1.0), ("half", 0.5))
        )
        ratio = ir.node("Div", [x, root])
        curve = ir.node("Erf", [ratio.outputs[0]])
        above = ir.node("Add", [curve.outputs[0], one])
        product = ir.node("Mul", [x, above.outputs[0]])
        result = ir.node("Mul", [product.outputs[0], half], name=node.name)
        replace(node, [ratio, curve, above, product, result], result.outputs[0])
    return tidy(model)


def contrib_gelu(model: ir.Model) -> ir.Model:
    """Gelu (opset 20) → com.microsoft.Gelu, for providers with older opsets."""
    for node in nodes_of(model, "Gelu"):
        if attribute(node, "approximate", "none") != "none":
            declined(model).append(f"{node.name}: com.microsoft.Gelu is exact")
            continue
        new = ir.node("Gelu", [node.inputs[0]], domain=MICROSOFT, name=node.name)
        model.graph.opset_imports[MICROSOFT] = 1
        replace(node, [new], new.outputs[0])
    return model


def at_opset(version: int) -> Pass:
    """A pass that declares the graph to be of opset `version`, without the attributes that came later.

    Raises (the pass):
        RequestError: an operator that this opset does not have.
    """

    def lower(model: ir.Model) -> ir.Model:
        for node in model.graph:
            if node.domain != "":
                continue
            if node.op_type == "Split" and version < 18 and "num_outputs" in node.attributes:
                _explicit_split(model, node)
            try:
                schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=version)
            except onnx.defs.SchemaError as error:
                raise RequestError(f"{node.name}: opset {version} has no {node.op_type}: choose another --target for this model") from error
            for name in [name for name in node.attributes if name not in schema.attributes]:
                del node.attributes[name]
            node.version = None
        model.graph.opset_imports[""] = version
        model.ir_version = 8 if version < 19 else 10
        return model

    return lower


def _explicit_split(model: ir.Model, node: ir.Node) -> None:
    """Split into equal parts by number (opset 18) → by sizes."""
    x, axis = node.inputs[0], attribute(node, "axis", 0)
    size = cast("Any", None if x is None or x.shape is None else x.shape[axis])
    if not isinstance(size, int):
        raise RequestError(f"{node.name}: the size of what is split is not known: choose another --target for this model")
    parts = len(node.outputs)
    del node.attributes["num_outputs"]
    sizes = integers(model, *(size // parts,) * parts)
    new = ir.Node("", "Split", [x, sizes], list(node.attributes.values()), num_outputs=parts, name=node.name)
    replace(node, [new], *new.outputs)


def one_time_for_all(model: ir.Model) -> ir.Model:
    """The U-Net's `timestep` may be one number for a whole batch, as optimum gives it: its size gets a name of its own.

    Else ONNX Runtime plans memory for what comes of it as if it were as many as the pictures. Shapes between are forgotten for it.
    """
    times = [value for value in model.graph.inputs if value.name == "timestep"]
    for value in times:
        value.shape = ir.Shape(["steps"])
    for node in model.graph if times else ():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return model
