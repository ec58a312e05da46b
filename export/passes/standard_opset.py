"""Passes to standard ONNX of an older opset, for runtimes without contrib operators."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir

from ...models.errors import RequestError
from ..graphs.edit import MICROSOFT, Pass, attribute, declined, initializer, integers, nodes_of, replace, tidy


def decompose_attention(model: ir.Model) -> ir.Model:
    """Attention → MatMul, Softmax, MatMul; causal attention with a mask in between."""
    for node in nodes_of(model, "Attention"):
        q, k, v = node.inputs[:3]
        if q is None or k is None or v is None or any(value is not None for value in node.inputs[3:]) or attribute(node, "softcap", 0.0):
            declined(model).append(f"{node.name}: attention with a mask, a cache or a soft cap is not decomposed")
            continue
        head_size = None if q.shape is None else q.shape[3]
        if not isinstance(head_size, int):
            declined(model).append(f"{node.name}: the head size is unknown")
            continue
        scale = attribute(node, "scale") or head_size**-0.5
        transposed = ir.node("Transpose", [k], {"perm": [0, 1, 3, 2]})
        scaled = ir.node("Mul", [q, initializer(model, f"scale_{scale:.8g}", np.array(scale, np.float32))])
        scores = ir.node("MatMul", [scaled.outputs[0], transposed.outputs[0]])
        nodes = [transposed, scaled, scores]
        if attribute(node, "is_causal", 0):
            nodes += _causal_mask(model, scores.outputs[0])
        weights = ir.node("Softmax", [nodes[-1].outputs[0]], {"axis": -1})
        result = ir.node("MatMul", [weights.outputs[0], v], name=node.name)
        replace(node, [*nodes, weights, result], result.outputs[0])
    return tidy(model)


def _causal_mask(model: ir.Model, scores: ir.Value) -> list[ir.Node]:
    """Return nodes that mask later keys in `scores` (batch, heads, queries, keys)."""
    size = ir.node("Shape", [scores], {"start": 2, "end": 4})
    lowest = ir.tensor(np.array([np.finfo(np.float16).min], np.float32))  # instead of -infinity: finite in half precision too
    filled = ir.node("ConstantOfShape", [size.outputs[0]], {"value": lowest})
    mask = ir.node("Trilu", [filled.outputs[0], integers(model, 1)], {"upper": 1})
    return [size, filled, mask, ir.node("Add", [scores, mask.outputs[0]])]


def expand_gelu(model: ir.Model) -> ir.Model:
    """Gelu (opset 20) → x/2 · (1 + erf(x/√2)), which every runtime fuses again."""
    for node in nodes_of(model, "Gelu"):
        x = node.inputs[0]
        if attribute(node, "approximate", "none") != "none":
            declined(model).append(f"{node.name}: only exact Gelu is expanded, not its approximation")
            continue
        root, one, half = (
            initializer(model, name, np.array(value, np.float32)) for name, value in (("root_2", 2**0.5), ("one", 1.0), ("half", 0.5))
        )
        scaled = ir.node("Div", [x, root])
        erf = ir.node("Erf", [scaled.outputs[0]])
        shifted = ir.node("Add", [erf.outputs[0], one])
        product = ir.node("Mul", [x, shifted.outputs[0]])
        result = ir.node("Mul", [product.outputs[0], half], name=node.name)
        replace(node, [scaled, erf, shifted, product, result], result.outputs[0])
    return tidy(model)


def contrib_gelu(model: ir.Model) -> ir.Model:
    """Gelu (opset 20) → com.microsoft.Gelu, for providers that support only older opsets."""
    for node in nodes_of(model, "Gelu"):
        if attribute(node, "approximate", "none") != "none":
            declined(model).append(f"{node.name}: com.microsoft.Gelu has no approximation")
            continue
        new = ir.node("Gelu", [node.inputs[0]], domain=MICROSOFT, name=node.name)
        model.graph.opset_imports[MICROSOFT] = 1
        replace(node, [new], new.outputs[0])
    return model


def at_opset(version: int) -> Pass:
    """Return a pass that sets the graph's opset to `version` and removes attributes that came later.

    Raises (the pass):
        RequestError: the opset lacks an operator of the graph.
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
                raise RequestError(f"{node.name}: opset {version} has no {node.op_type}; choose another --target for this model") from error
            for name in [name for name in node.attributes if name not in schema.attributes]:
                del node.attributes[name]
            node.version = None
        model.graph.opset_imports[""] = version
        model.ir_version = 8 if version < 19 else 10
        return model

    return lower


def _explicit_split(model: ir.Model, node: ir.Node) -> None:
    """Split by `num_outputs` (opset 18) → by sizes."""
    x, axis = node.inputs[0], attribute(node, "axis", 0)
    size = cast("Any", None if x is None or x.shape is None else x.shape[axis])
    if not isinstance(size, int):
        raise RequestError(f"{node.name}: the size of the split tensor is unknown; choose another --target for this model")
    parts = len(node.outputs)
    del node.attributes["num_outputs"]
    sizes = integers(model, *(size // parts,) * parts)
    new = ir.Node("", "Split", [x, sizes], list(node.attributes.values()), num_outputs=parts, name=node.name)
    replace(node, [new], *new.outputs)


def one_time_for_all(model: ir.Model) -> ir.Model:
    """Name the dimension of the U-Net's `timestep` apart from the batch: optimum passes one number for a whole batch.

    With the batch's name, ONNX Runtime would plan memory for one time embedding per image. Shapes of intermediate tensors are removed,
    since they use that name.
    """
    timesteps = [value for value in model.graph.inputs if value.name == "timestep"]
    for value in timesteps:
        value.shape = ir.Shape(["steps"])
    for node in model.graph if timesteps else ():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return model
