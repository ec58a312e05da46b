"""residual.py: convolutions whose input and output are the residual stream, on a small graph, measured against float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffusette.export import lower, parity, quantize, ranges, residual, write
from diffusette.export.calibrate import open_graph
from diffusette.export.pieces import Pieces
from diffusette.models import onnx_file
from diffusette.models.manifest import Component, Tensor
from diffusette.runtime import merge, providers
from diffusette.runtime.session import SessionOptions, open_session

LAYER = "down_blocks.0.downsamplers.0.conv"
RNG = np.random.default_rng(2)
SIZES = np.geomspace(0.1, 30, 16).astype(np.float32)
"""Of the channels that go in, and of those that come out, in another order."""


def normal(*shape, scale=1.0):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


WEIGHT = normal(16, 16, 3, 3, scale=0.1) * SIZES[::-1, None, None, None] / SIZES[None, :, None, None]
BIAS = normal(16)
FEEDS = [{"x": normal(1, 16, 12, 12) * SIZES[None, :, None, None]} for _ in range(4)]


def model():
    """x → LeakyRelu, so that there is an activation → the convolution at stride 2 → twice itself, so that something follows."""
    nodes = [
        helper.make_node("LeakyRelu", ["x"], ["h"], alpha=0.9),
        helper.make_node("Conv", ["h", f"{LAYER}.weight", f"{LAYER}.bias"], ["d"], strides=[2, 2], pads=[1, 1, 1, 1], name="down"),
        helper.make_node("Add", ["d", "d"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHT, f"{LAYER}.weight"), numpy_helper.from_array(BIAS, f"{LAYER}.bias")],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def everything(_layer):
    return "int8"


@pytest.fixture
def seen(tmp_path):
    write.save(model(), tmp_path / "plain")
    names = quantize.wanted_tensors(model(), everything)
    return ranges.observe(Pieces(tmp_path / "plain", open_graph, watched=names), names, FEEDS)[0]


def run(folder, feed):
    return open_graph(folder / write.GRAPH).run(feed)["y"]


def test_between_its_multiplications_a_convolution_computes_the_same_of_channels_of_one_size(seen, tmp_path):
    sizes = residual.sizes(model(), everything, seen)
    evened = residual.apply(model(), sizes)
    write.save(evened, tmp_path / "evened")
    expected, found = (run(tmp_path / name, FEEDS[0]) for name in ("plain", "evened"))
    assert parity.snr(expected, found) > 110
    conv = next(node for node in evened.graph if node.op_type == "Conv")
    told = residual.divided(model(), seen, sizes)
    names = {conv.inputs[0].name: -1, conv.outputs[0].name: -1}
    assert names.keys() == told.keys() - seen.keys()
    measured, _ = ranges.observe(Pieces(tmp_path / "evened", open_graph, watched=names), dict.fromkeys(names, 1), FEEDS)
    for name, one in measured.items():
        np.testing.assert_allclose(one.peaks, told[name].peaks, rtol=1e-4)
        assert one.peaks.max() < 4 * one.peaks.min()


def test_eight_bits_lose_less_of_channels_of_one_size(seen, tmp_path):
    sizes = residual.sizes(model(), everything, seen)
    expected, losses = run(tmp_path / "plain", FEEDS[1]), []
    for found in ({}, sizes):
        calibration = quantize.Calibration(residual.divided(model(), seen, found))
        for form in ("operators", "qdq"):
            write.save(quantize.quantize(residual.apply(model(), found), everything, calibration, form)[0], tmp_path / "made")
            small = np.argmin(SIZES[::-1])  # what is lost of the smallest channel
            losses.append(parity.snr(expected[:, small], run(tmp_path / "made", FEEDS[1])[:, small]))
    assert min(losses[2:]) > max(losses[:2]) + 20


def test_layers_that_change_the_resolution_are_evened_and_others_are_not(seen):
    assert list(residual.sizes(model(), everything, seen)) == [LAYER]
    assert residual.sizes(model(), lambda _: "half", seen) == {}
    other = model()
    other.graph.initializers[f"{LAYER}.weight"].name = "conv_in.weight"
    assert residual.sizes(other, everything, seen) == {}


def exported(tmp_path, bar):
    """The graph as the export lowers it."""
    write.save(model(), tmp_path / "float")
    component = Component("unet/model.onnx", "fp32", {"x": Tensor("float32", ("n", 16, "h", "w"))}, {}, 120.0)
    return lower.to_integers("unet", tmp_path / "float", tmp_path / "made", FEEDS, component, bar, "operators")


def test_a_lora_adds_to_the_weight_of_an_evened_convolution_as_to_the_model_s(tmp_path):
    made = exported(tmp_path, 24.0)
    assert [row.kind for row in made.rows] == ["int8"]
    graph, delta = tmp_path / "made" / write.GRAPH, WEIGHT * normal(*WEIGHT.shape, scale=0.1)
    weights = merge.added(graph, onnx_file.read(graph).initializers, LAYER, delta)
    changed = open_session(graph, providers.resolve("cpu"), SessionOptions(weights=weights)).run(FEEDS[2])["y"]
    expected = model()
    expected.graph.initializers[f"{LAYER}.weight"].const_value = ir.tensor(WEIGHT + delta, name=f"{LAYER}.weight")
    write.save(expected, tmp_path / "added")
    wanted, before = run(tmp_path / "added", FEEDS[2]), run(tmp_path / "float", FEEDS[2])
    assert parity.snr(wanted, before) < 25
    assert parity.snr(wanted, changed) > 30


def test_a_layer_that_went_back_to_float_is_as_it_was(tmp_path):
    made = exported(tmp_path, 60.0)
    assert [(row.kind, row.recipe) for row in made.rows] == [("half", "int8")]
    operators = [node.op_type for node in ir.load(tmp_path / "made" / write.GRAPH).graph]
    assert "Mul" not in operators
    assert not [name for name in onnx_file.read(tmp_path / "made" / write.GRAPH).initializers if name.endswith("_factors")]
