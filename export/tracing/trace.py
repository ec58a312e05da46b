"""Trace a torch module to an ONNX graph whose weights stay on disk.

Tracing works on placeholders. Afterwards, each initializer is a lazy tensor that reads its weight on access, so graphs of any size
take little memory, and passes and writers read one tensor at a time.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

from ...models.errors import NumericalError
from ..graphs.edit import initializer, lazy, nodes_of
from ..sources.diffusers_folder import Weights
from .torch_reference import examples, tensors
from .traceable import Component

OPSET = 23
"""The first opset with Attention: torch's attention stays one node, which the passes of each target lower."""
_RULES = RewritePass([
    *(rules.add_0_rule, rules.sub_0_rule, rules.mul_by_1_rule, rules.div_by_1_rule),
    *(rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule, rules.materialize_reshape_shape_rule),
    *(rules.cast_cast_rule, rules.transpose_transpose_rule, rules.unsqueeze_unsqueeze_rule, rules.squeeze_reshape_1d_rule),
    *(rules.reshape_reshape_rule, rules.collapse_slice_rule, rules.flatten_to_reshape_rule),
    *(rules.one_reshape_matmul_reshape_rule, rules.two_reshapes_matmul_reshape_rule),
])  # fmt: skip
"""Cleanup rules for traced graphs. All of onnxscript's rules take four times as long: one of them compares every pair of nodes."""
_AFTER = (
    common.IdentityEliminationPass(),
    common.RemoveUnusedNodesPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.DeduplicateInitializersPass(),
    common.CommonSubexpressionEliminationPass(),
    common.OutputFixPass(),
    common.NameFixPass(),
)


def trace(component: Component) -> ir.Model:
    """The graph of `component` at opset 23 with free dimensions, simplified; initializers keep the names of the weights.

    Raises:
        NumericalError: torch fixed a dimension that must stay free, or the graph needs a buffer.
    """
    ports = component.inputs
    # With odd sizes, the traced graph takes its upsampling sizes from the skip connections, and every size works.
    size = (48, 80) if component.name == "vae_encoder" else (19, 21)
    feeds = examples(component, size, batch=2, tokens=7, timestep=500.0, seed=0)
    arguments = tensors(feeds[port.name] for port in ports)
    shapes = [{axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(port.shape) if isinstance(dim, str)} for port in ports]
    if component.name == "unet" and len(shapes) > 3:
        shapes = [*shapes[:3], tuple(shapes[3:])]  # `UNet.forward` takes the additional inputs as one *argument
    with _quiet(), torch.no_grad():
        # Not left to torch.onnx.export, which falls back to strict tracing for free sizes and takes three times as long.
        exported = torch.export.export(component.module, arguments, dynamic_shapes=tuple(shapes), strict=False)
        model = _translated(exported, component)
    _name_ports(model, component)
    _simplify(model)
    _attach(model, component.prefix, component.weights)
    _name_dimensions(model, component)
    return model


def _translated(exported: torch.export.ExportedProgram, component: Component) -> ir.Model:
    """Translate the traced program to ONNX.

    By default, the exporter traces the program again to decompose its operators, which takes half of the total time, although nearly
    all operators have an ONNX form. So it decomposes only if the translation fails without.
    """
    if _without_idle_operators(exported):
        program: Any = exported

        def unchanged(_table: object = None) -> torch.export.ExportedProgram:
            return exported

        decompose, program.run_decompositions = program.run_decompositions, unchanged
        with suppress(cast("Any", torch).onnx.errors.OnnxExporterError):
            return _to_onnx(exported, component)
        program.run_decompositions = decompose
    return _to_onnx(exported, component)


def _to_onnx(exported: torch.export.ExportedProgram, component: Component) -> ir.Model:
    return (
        cast("Any", torch)
        .onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=[port.name for port in component.inputs],
            output_names=[port.name for port in component.outputs],
        )
        .model
    )


def _without_idle_operators(exported: torch.export.ExportedProgram) -> bool:
    """Remove casts and reshapes without effect and dropout, and give other casts a form that ONNX has.

    Returns False if an operator writes into its input.
    """
    aten = cast("Any", torch).ops.aten
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            return False
        first: Any = node.args[0] if node.args else None
        if node.target in {aten.to.dtype, aten.reshape.default, aten.view.default}:
            idle = _kind(first) == _kind(node)
        else:
            idle = node.target is aten.contiguous.default or (node.target is aten.dropout.default and not node.args[2])
        if idle:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
        elif node.target is aten.to.dtype:
            node.target, node.args, node.kwargs = aten._to_copy.default, (first,), {"dtype": node.args[1]}  # noqa: SLF001  # the operator's name
    return True


def _kind(node: torch.fx.Node) -> list[str]:
    """Element type and dimensions of a tensor, as text: comparing free dimensions would fix them."""
    return [str(node.meta["val"].dtype), *map(str, node.meta["val"].shape)]


def _name_ports(model: ir.Model, component: Component) -> None:
    for value, port in zip(model.graph.outputs, component.outputs, strict=True):
        value.name = port.name


def _simplify(model: ir.Model) -> None:
    """Fold constants. Meanwhile, the weights are graph inputs, so that no placeholder is folded."""
    weights = list(model.graph.initializers.values())
    for value in weights:
        del model.graph.initializers[value.name or ""]
        value.const_value = None
        model.graph.inputs.append(value)
    optimizer.inline(model)
    for _ in range(2):
        cast("Any", optimizer).fold_constants(model, should_fold=_is_not_exponential)
        _fold_exponentials(model)
        _RULES(model)
        common.RemoveUnusedNodesPass()(model)
    for one in _AFTER:
        one(model)
    for value in weights:
        model.graph.inputs.remove(value)
        if value.uses():
            model.graph.initializers.add(value)


def _is_not_exponential(node: ir.Node) -> bool | None:
    return False if node.op_type == "Exp" else None


def _fold_exponentials(model: ir.Model) -> None:
    """Fold exponentials of constants with torch. NumPy's results differ in the last bits, and these are the frequencies of the time
    embedding: at step 999, its angles would be off by 1e-4, and SDXL's U-Net would agree with torch to 99 dB only.
    """
    for node in nodes_of(model, "Exp"):
        power, result = node.inputs[0], node.outputs[0]
        if power is not None and power.const_value is not None:
            values = torch.exp(tensors([power.const_value.numpy()])[0]).numpy()
            result.replace_all_uses_with(initializer(model, f"{result.name}.folded", values))
            model.graph.remove(node, safe=True)


def _attach(model: ir.Model, prefix: str, weights: Weights) -> None:
    """Name each initializer after its weight, and attach the weight unread."""
    for value in list(model.graph.initializers.values()):
        if value.const_value is not None:
            continue
        del model.graph.initializers[value.name or ""]
        value.name = (value.name or "").removeprefix(prefix)
        if value.name not in weights.shapes:
            raise NumericalError(f"the traced graph needs {value.name!r}, which is not a weight of the model: buffers cannot be exported")
        value.const_value = lazy(value.name, weights.shapes[value.name], partial(weights.read, value.name))
        value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
        model.graph.initializers.add(value)


def _name_dimensions(model: ir.Model, component: Component) -> None:
    """Name free dimensions everywhere, also inside expressions: torch's symbol for the height becomes `height`."""
    names: dict[str, str] = {}
    for value, port in zip(model.graph.inputs, component.inputs, strict=True):
        for axis, dim in enumerate(port.shape):
            got = value.shape[axis] if value.shape is not None else None
            if isinstance(dim, int) != isinstance(got, int):
                raise NumericalError(f"{component.name}: tracing fixed dimension {axis} of {port.name} to {got}, which must stay free")
            if isinstance(dim, str):
                names[str(got)] = dim
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([dim if isinstance(dim, int) else _renamed(str(dim), names) for dim in value.shape])
    for value, port in (*zip(model.graph.inputs, component.inputs, strict=True), *zip(model.graph.outputs, component.outputs, strict=True)):
        value.shape = ir.Shape(port.shape)


def _renamed(expression: str, names: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match.group(), match.group()), expression)


@contextmanager
def _quiet() -> Generator[None]:
    """Silence torch's exporter, which reports its internals: torchvision, deprecated calls, changed dimensions."""
    root = logging.getLogger("torch.onnx")
    level = root.level
    root.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.setLevel(level)
