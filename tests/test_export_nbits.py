"""nbits.py: four bits as ONNX Runtime reads them, through the gate for every target that has them, and never with a LoRA on top."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from diffusette.export import calibrate, layers, lower, nbits, parity, write
from diffusette.export.pieces import Pieces
from diffusette.models import onnx_file
from diffusette.models.errors import RequestError
from diffusette.models.manifest import Component
from diffusette.runtime import merge
from tests.test_export_quantize import FEEDS, model

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_what_onnx_runtime_multiplies_with_is_what_was_packed(tmp_path, blocks):
    weight = RNG.standard_normal((32 * blocks, 24)).astype(np.float32)
    weight[:, 3] += 4  # a channel far from zero, and one of zeros
    weight[:, 7] = 0
    x = ir.Value(name="x", shape=ir.Shape(["rows", 32 * blocks]), type=ir.TensorType(ir.DataType.FLOAT))
    value = ir.Value(name="l.weight", shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.tensor(weight))
    node = ir.node("MatMul", [x, value])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 20, "com.microsoft": 1})
    made = ir.Model(graph, ir_version=10)
    size, snr = nbits.lower(made, layers.layers(made)[0])
    write.save(made, tmp_path)
    packed = nbits.pack(weight)
    assert size == sum(array.nbytes for array in packed)
    read = nbits.unpack(packed)
    assert snr == pytest.approx(parity.snr(weight, read), abs=0.06)
    assert parity.snr(weight, read) > 19
    np.testing.assert_array_equal(read[:, 7], 0)
    feed = RNG.standard_normal((5, 32 * blocks)).astype(np.float32)
    got = calibrate.open_graph(tmp_path / write.GRAPH).run({"x": feed})["y"]
    assert parity.snr(feed @ read, got) > 35  # activations go to 8 bit, block by block


def test_blocks_that_hold_sixteen_values_come_back_exactly():
    weight = RNG.integers(0, 16, (64, 8)).astype(np.float32)
    weight[::32], weight[1::32] = 0, 15
    np.testing.assert_allclose(nbits.unpack(nbits.pack(weight)), weight, atol=1e-5)


def lowered(tmp_path, target, bar=8.0):
    write.save(model(), tmp_path / "float")
    component = Component("unet/model.onnx", "fp32", {}, {}, 120.0)
    where = (tmp_path / "float", tmp_path / "made", tmp_path / "work", FEEDS, component, bar)
    return lower.lower("unet", "int4", target, *where)


@pytest.mark.parametrize("target", ["cpu", "cuda", "directml"])
def test_linear_layers_get_four_bits_and_the_gate_compares_what_is_published(tmp_path, target):
    found = lowered(tmp_path, target)
    kinds = {row.layer: row.kind for row in found.rows}
    assert {kinds[name] for name in ("ff.net.0.proj", "ff.net.2", "last")} == {"int4"}
    assert {kinds["a"], kinds["b"]} == ({"int8"} if target == "cpu" else {"float"})
    assert found.component.precision == "int4"
    assert found.component.parity_db >= 8
    expected = Pieces(tmp_path / "float", calibrate.open_graph).run_all(FEEDS)
    now = parity.compare(Pieces(tmp_path / "made", calibrate.open_graph), FEEDS, expected).db
    assert now == pytest.approx(found.component.parity_db, abs=0.5)
    halves = {name for name, value in write.load(tmp_path / "made").graph.initializers.items() if value.dtype == ir.DataType.FLOAT16}
    assert ("a.weight" in halves) == ("last.weight_int4_scale" in halves) == (target != "cpu")
    assert not (tmp_path / "work").exists()


def test_four_bits_that_cost_too_much_become_more(tmp_path):
    found = lowered(tmp_path, "cpu", 26.0)
    assert found.component.parity_db >= 26
    assert any(row.recipe == "int4" and row.kind == "weights" for row in found.rows)


def test_a_lora_is_refused_for_layers_in_four_bits_with_what_to_do(tmp_path):
    lowered(tmp_path, "cpu")
    initializers = onnx_file.read(tmp_path / "made" / write.GRAPH).initializers
    assert merge.modules(initializers) == {"a", "b", "ff.net.0.proj", "ff.net.2", "last"}
    assert merge.shape_of(initializers, "a") == (32, 16, 3, 3)
    with pytest.raises(RequestError, match=r"last is stored in 4 bit.*merge the LoRA when exporting"):
        merge.shape_of(initializers, "last")
