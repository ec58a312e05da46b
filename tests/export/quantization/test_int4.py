"""int4 weights: packed as ONNX Runtime reads them, checked by the quality gate of every target with int4, refused for LoRAs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from diffusette.export import runtime_bridge
from diffusette.export.graphs import parity, save
from diffusette.export.graphs.run_in_pieces import Pieces
from diffusette.export.quantization import int4, layers, lower_precision
from diffusette.models.errors import RequestError
from diffusette.models.formats import onnx_reader
from diffusette.models.manifest import Component
from diffusette.runtime.adapters import merge_weights
from tests.export.quantization.test_quantize import FEEDS, model

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_onnx_runtime_multiplies_with_the_weights_that_were_packed(tmp_path, blocks):
    weight = RNG.standard_normal((32 * blocks, 24)).astype(np.float32)
    weight[:, 3] += 4  # one channel far from zero, one of zeros
    weight[:, 7] = 0
    x = ir.Value(name="x", shape=ir.Shape(["rows", 32 * blocks]), type=ir.TensorType(ir.DataType.FLOAT))
    value = ir.Value(name="l.weight", shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.tensor(weight))
    node = ir.node("MatMul", [x, value])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 20, "com.microsoft": 1})
    quantized = ir.Model(graph, ir_version=10)
    size, snr = int4.lower(quantized, layers.layers(quantized)[0])
    save.save(quantized, tmp_path)
    packed = int4.pack(weight)
    assert size == sum(array.nbytes for array in packed)
    unpacked = int4.unpack(packed)
    assert snr == pytest.approx(parity.snr(weight, unpacked), abs=0.06)
    assert parity.snr(weight, unpacked) > 19
    np.testing.assert_array_equal(unpacked[:, 7], 0)
    feed = RNG.standard_normal((5, 32 * blocks)).astype(np.float32)
    output = runtime_bridge.open_graph(tmp_path / save.GRAPH).run({"x": feed})["y"]
    assert parity.snr(feed @ unpacked, output) > 35  # activations are rounded to int8, block by block


def test_blocks_of_at_most_sixteen_values_are_exact():
    weight = RNG.integers(0, 16, (64, 8)).astype(np.float32)
    weight[::32], weight[1::32] = 0, 15
    np.testing.assert_allclose(int4.unpack(int4.pack(weight)), weight, atol=1e-5)


def lowered(tmp_path, target, bar=8.0):
    save.save(model(), tmp_path / "float")
    component = Component("unet/model.onnx", "fp32", {}, {}, 120.0)
    folders = (tmp_path / "float", tmp_path / "made", tmp_path / "work")
    return lower_precision.lower("unet", "int4", target, *folders, FEEDS, component, bar)


@pytest.mark.parametrize("target", ["cpu", "cuda", "directml", "webgpu"])
def test_linear_layers_become_int4_and_the_gate_compares_the_published_graph(tmp_path, target):
    found = lowered(tmp_path, target)
    kinds = {row.layer: row.kind for row in found.rows}
    assert {kinds[name] for name in ("ff.net.0.proj", "ff.net.2", "last")} == {"int4"}
    assert {kinds["a"], kinds["b"]} == ({"int8"} if target == "cpu" else {"float"})
    assert found.component.precision == "int4"
    assert found.component.parity_db >= 8
    expected = Pieces(tmp_path / "float", runtime_bridge.open_graph).run_all(FEEDS)
    published = parity.compare(Pieces(tmp_path / "made", runtime_bridge.open_graph), FEEDS, expected).db
    assert published == pytest.approx(found.component.parity_db, abs=0.5)
    halves = {name for name, value in save.load(tmp_path / "made").graph.initializers.items() if value.dtype == ir.DataType.FLOAT16}
    assert ("a.weight" in halves) == ("last.weight_int4_scale" in halves) == (target != "cpu")
    assert not (tmp_path / "work").exists()


def test_int4_layers_that_cost_too_much_get_a_higher_precision(tmp_path):
    found = lowered(tmp_path, "cpu", 26.0)
    assert found.component.parity_db >= 26
    assert any(row.recipe == "int4" and row.kind == "weights" for row in found.rows)


@pytest.mark.parametrize("target", ["cuda", "webgpu"])
def test_a_component_without_int4_layers_is_in_half_precision_on_a_gpu(tmp_path, target):
    found = lowered(tmp_path, target, 90.0)
    assert found.component.precision == "fp16"
    assert not any(row.kind == "int4" for row in found.rows)
    floats = [value for value in save.load(tmp_path / "made").graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
    assert not [value for value in floats if len(value.shape) > 1]
    assert not (tmp_path / "work").exists()


def test_a_lora_is_refused_for_int4_layers_with_advice(tmp_path):
    lowered(tmp_path, "cpu")
    initializers = onnx_reader.read(tmp_path / "made" / save.GRAPH).initializers
    assert merge_weights.modules(initializers) == {"a", "b", "ff.net.0.proj", "ff.net.2", "last"}
    assert merge_weights.shape_of(initializers, "a") == (32, 16, 3, 3)
    with pytest.raises(RequestError, match=r"last is stored in int4.*merge the LoRA when exporting"):
        merge_weights.shape_of(initializers, "last")
