"""Quantizing before an upsampling: the same result, bit for bit, or no change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from diffusette.export.quantization import resize_int8
from diffusette.export.runtime_bridge import open_graph
from tests.support import small_graphs

NEAREST = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
WEIGHTS: dict[str, NDArray[Any]] = {
    "twice": np.array([1, 1, 2, 2], np.float32),
    "channels": np.array([1, 2, 1, 1], np.float32),
    "size": np.array([1, 3, 10, 14]),
    "factors": np.array([0.3, 1.0, 7.0], np.float32).reshape(1, 3, 1, 1),
    "columns": np.linspace(0, 1, 14, dtype=np.float32),
    "step": np.array(0.02, np.float32),
    "zero": np.array(100, np.uint8),
}


def model(resize: list[str], factor: str | None, **attributes: str) -> onnx.ModelProto:
    """x (1, 3, 5, 7) → Resize, [Mul by `factor`,] QuantizeLinear, DequantizeLinear → y."""
    node = onnx.helper.make_node
    nodes = [node("Resize", ["x", *resize], ["large"], **(NEAREST | attributes))]
    if factor is not None:
        nodes.append(node("Mul", ["large", factor], ["scaled"]))
    nodes.append(node("QuantizeLinear", ["large" if factor is None else "scaled", "step", "zero"], ["stored"]))
    nodes.append(node("DequantizeLinear", ["stored", "step", "zero"], ["y"]))
    shapes = {"x": (onnx.TensorProto.FLOAT, [1, 3, 5, 7])}, {"y": (onnx.TensorProto.FLOAT, ["n", "c", "h", "w"])}
    return small_graphs.model(nodes, *shapes, WEIGHTS)


def operators(changed: ir.Model) -> list[str]:
    return [node.op_type for node in changed.graph]


@pytest.mark.parametrize("resize", [["", "twice"], ["", "", "size"]])
@pytest.mark.parametrize("factor", [None, "factors", "step"])
def test_quantizing_moves_before_a_nearest_neighbour_resize_and_the_result_stays_the_same(
    tmp_path: Path, resize: list[str], factor: str | None
) -> None:
    before = small_graphs.save(model(resize, factor), tmp_path / "before.onnx")
    changed = resize_int8.quantize_before_resize(ir.from_proto(onnx.load(before)))
    assert operators(changed) == [*(["Mul"] if factor else []), "QuantizeLinear", "Resize", "DequantizeLinear"]
    after = small_graphs.save(ir.to_proto(changed), tmp_path / "after.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 7), np.float32)
    one, two = (open_graph(path).run({"x": x})["y"] for path in (before, after))
    assert one.shape == (1, 3, 10, 14)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("resize", "factor", "attributes"),
    [
        (["", "twice"], "columns", {}),
        (["", "channels"], None, {}),
        (["", "twice"], None, {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    ],
)
def test_quantizing_stays_after_a_resize_that_it_does_not_commute_with(
    resize: list[str], factor: str | None, attributes: dict[str, str]
) -> None:
    changed = resize_int8.quantize_before_resize(ir.from_proto(model(resize, factor, **attributes)))
    assert operators(changed)[0] == "Resize"


def test_quantizing_stays_after_a_resize_with_another_user() -> None:
    proto = model(["", "twice"], None)
    proto.graph.node.append(onnx.helper.make_node("Relu", ["large"], ["other"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["n", "c", "h", "w"]))
    assert operators(resize_int8.quantize_before_resize(ir.from_proto(proto)))[0] == "Resize"
