"""Values of initializers, read and replaced, judged by the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from diffusette.models.errors import BundleError
from diffusette.models.formats import onnx_reader, onnx_replace_weights
from tests.support import small_graphs


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64", "bool"])
def test_values_are_those_that_onnx_reads(tmp_path: Path, dtype: str, external: bool) -> None:
    arrays = {"a": np.arange(12).reshape(3, 4).astype(dtype), "scalar": np.array(1, dtype), "none": np.zeros((0, 3), dtype)}
    node = helper.make_node("Identity", ["x"], ["y"])
    path = small_graphs.save(
        small_graphs.model([node], {"x": (1, [1])}, {"y": (1, [1])}, arrays), tmp_path / "model.onnx", external=external
    )
    read = onnx_reader.read(path)
    for tensor in onnx.load(path).graph.initializer:
        value = onnx_replace_weights.values(path, read.initializers[tensor.name])
        expected = numpy_helper.to_array(tensor)
        assert value.dtype == expected.dtype
        assert value.shape == expected.shape
        assert np.array_equal(value, expected)


def test_values_that_are_not_raw_bytes_are_refused(tmp_path: Path) -> None:
    proto = small_graphs.model([helper.make_node("Identity", ["x"], ["y"])], {"x": (1, [1])}, {"y": (1, [1])}, {})
    proto.graph.initializer.append(helper.make_tensor("spelled", 1, [2], [1.0, 2.0]))
    path = small_graphs.save(proto, tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="not stored as raw bytes"):
        onnx_replace_weights.values(path, onnx_reader.read(path).initializers["spelled"])


def test_replaced_initializers_change_and_nothing_else_does(tmp_path: Path) -> None:
    path = small_graphs.linear(tmp_path / "model.onnx")
    new = {"b": np.full(3, 2.5, np.float16), "w": np.arange(200, dtype=np.float32).reshape(25, 8)}
    proto = onnx.load_from_string(onnx_replace_weights.replaced(path, new))
    old = onnx.load(path)
    assert {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in proto.graph.initializer} == {
        name: array.tolist() for name, array in new.items()
    }
    for either in (proto, old):
        del either.graph.initializer[:]
    assert proto == old


def test_an_initializer_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = small_graphs.linear(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="has no initializer 'lora'"):
        onnx_replace_weights.replaced(path, {"lora": np.zeros(1, np.float32)})
    with pytest.raises(BundleError, match="no ONNX dtype is called <U4"):
        onnx_replace_weights.replaced(path, {"b": np.zeros(1, "U4")})
