"""Graphs in half precision that are made to compute in float32: onnx reads them, ONNX Runtime runs them, nothing overflows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from diffusette.models.errors import BundleError
from diffusette.models.formats import onnx_reader, widen_to_float32
from diffusette.runtime.engine.providers import TABLE
from diffusette.runtime.engine.session import SessionOptions, open_session
from tests.support import contrib_operators, small_graphs

CPU = TABLE["cpu"]
X = np.linspace(-100.0, 100.0, 16, dtype=np.float32).reshape(2, 8)
LARGE = 1000.0
"""What X is multiplied with eight times over, and divided by again: beyond half precision on the way."""


def packed(values: list[float]) -> onnx.TensorProto:
    """Halves as bits in TensorProto.int32_data, where onnx.helper puts them."""
    return helper.make_tensor("packed", TensorProto.FLOAT16, [len(values)], values)


def half(path: Path, *, external: bool = False) -> Path:
    """x (n, 8) → y = 2 · x + 3, through every place in which a model names half precision, and through numbers that it cannot hold."""
    plain = numpy_helper.from_array(np.full(8, 3, np.float16), "three")
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["a0"]),
        helper.make_node("Concat", ["a0", "a0"], ["a1"], axis=1),
        helper.make_node("Split", ["a1"], ["a", "rest"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["a", "small"], ["b"]),
        helper.make_node("Constant", [], ["two"], value=packed([2.0])),
        helper.make_node("Constant", [], ["three"], value=plain),
        helper.make_node("twice", ["b", "two"], ["c"], domain="ours"),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["none"], value=numpy_helper.from_array(np.zeros(1, np.float16))),
        helper.make_node("Add", ["c", "none"], ["d"]),
        helper.make_node("Add", ["d", "three"], ["y"]),
    ]
    weights = {"large": np.full(8, LARGE, np.float16), "small": np.full(8, 1 / LARGE, np.float16)}
    kind = (TensorProto.FLOAT16, ["n", 8])
    function = helper.make_function(
        "ours",
        "twice",
        ["p", "q"],
        ["r"],
        [helper.make_node("Cast", ["p"], ["s"], to=TensorProto.FLOAT16), helper.make_node("Mul", ["s", "q"], ["r"])],
        [helper.make_opsetid("", 18)],
    )
    proto = small_graphs.model(nodes, {"x": kind}, {"y": kind}, weights, functions=[function])
    proto.graph.value_info.append(helper.make_tensor_value_info("a", *kind))
    return small_graphs.save(proto, path, external=external)


def kinds(message: Any, found: set[int]) -> set[int]:
    """Every dtype that is named anywhere in a message of protocol buffers."""
    for field, value in message.ListFields():
        if field.name in {"data_type", "elem_type"} or (field.name == "i" and message.name in {"to", "dtype"}):
            found.add(value)
        for one in [] if field.type != field.TYPE_MESSAGE else [value] if hasattr(value, "ListFields") else value:
            kinds(one, found)
    return found


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_what_overflows_in_half_precision_is_right_in_a_widened_session(tmp_path: Path, external: bool) -> None:
    path = half(tmp_path / "model.onnx", external=external)
    before = path.read_bytes()
    narrow = open_session(path, CPU)
    assert narrow.inputs["x"].dtype == "float16"
    assert not np.isfinite(narrow.run({"x": X})["y"]).all()
    for options in (SessionOptions(wide=True), SessionOptions(wide=True, fold=False, prepack=False)):
        wide = open_session(path, CPU, options)
        assert (wide.inputs["x"].dtype, wide.outputs["y"].dtype) == ("float32", "float32")
        np.testing.assert_allclose(wide.run({"x": X})["y"], 2 * X + 3, rtol=1e-3)
    assert path.read_bytes() == before


def test_no_half_is_left_but_the_weights_which_are_cast_as_they_are_used(tmp_path: Path) -> None:
    path = half(tmp_path / "model.onnx")
    assert widen_to_float32.has_halves(onnx_reader.read(path))
    model = onnx.load_from_string(widen_to_float32.widened(path.read_bytes(), {"large", "small"}))
    onnx.checker.check_model(model, full_check=True)
    assert {one.name: one.data_type for one in model.graph.initializer} == {"large": 10, "small": 10}
    del model.graph.initializer[:]
    assert TensorProto.FLOAT16 not in kinds(model, set())


def test_the_operators_of_gpu_graphs_compute_in_float32_too() -> None:
    """As their documentation has it: the kernels are on GPUs alone."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "large"], ["m"]),
        helper.make_node("GroupNorm", ["m", "gamma", "beta"], ["g"], domain="com.microsoft", groups=4, channels_last=0, activation=1),
        helper.make_node("QuickGelu", ["g"], ["q"], domain="com.microsoft", alpha=1.0),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
    ]
    gamma, beta = (np.random.default_rng(seed).standard_normal(16).astype(np.float32) for seed in (1, 2))
    weights = {"large": np.full(1, 60_000, np.float16), "gamma": gamma, "beta": beta}
    kind = (TensorProto.FLOAT, ["n", 16, 4, 4])
    data = small_graphs.model(nodes, {"x": kind}, {"y": kind}, weights).SerializeToString()
    x = np.random.default_rng(0).standard_normal((2, 16, 4, 4), np.float32)
    normal = contrib_operators.group_norm(np.float32(60_000) * x.transpose(0, 2, 3, 1), gamma, beta, 4, 1e-5)
    expected = contrib_operators.silu(contrib_operators.silu(normal)).transpose(0, 3, 1, 2)
    with np.errstate(all="ignore"):
        narrow, wide = (
            ReferenceEvaluator(onnx.load_from_string(one), new_ops=contrib_operators.ALL).run(None, {"x": x})[0]
            for one in (data, widen_to_float32.widened(data, {"large"}))
        )
    assert not np.isfinite(narrow).all()
    np.testing.assert_allclose(wide, expected, rtol=1e-3, atol=1e-4)


def test_a_replaced_weight_is_used_by_a_widened_session(tmp_path: Path) -> None:
    for external in (False, True):
        path = half(tmp_path / f"{external}/model.onnx", external=external)
        options = SessionOptions(wide=True, weights={"small": np.full(8, 3 / LARGE, np.float16)})
        np.testing.assert_allclose(open_session(path, CPU, options).run({"x": X})["y"], 6 * X + 3, rtol=1e-3)


def test_a_graph_without_halves_has_nothing_to_widen_and_stays_as_it_is(tmp_path: Path) -> None:
    path = small_graphs.linear(tmp_path / "model.onnx")
    assert not widen_to_float32.has_halves(onnx_reader.read(path))
    same = onnx.load_from_string(widen_to_float32.widened(path.read_bytes(), ()))
    assert same == onnx.load(path)


@pytest.mark.parametrize("kept", [40, 200, 0.5, 0.9])
def test_a_damaged_graph_is_refused(tmp_path: Path, kept: float) -> None:
    data = half(tmp_path / "model.onnx").read_bytes()
    with pytest.raises(BundleError, match="cannot be made to compute in float32"):
        widen_to_float32.widened(data[: int(kept if kept > 1 else kept * len(data))], {"large", "small"})
