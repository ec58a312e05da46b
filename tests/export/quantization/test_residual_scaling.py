"""Channel scaling around convolutions on the residual stream: a small graph, compared with float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffusette.export.graphs import parity, save
from diffusette.export.graphs.run_in_pieces import Pieces
from diffusette.export.quantization import lower_precision, quantize, ranges, residual_scaling
from diffusette.export.runtime_bridge import open_graph
from diffusette.models.formats import onnx_reader
from diffusette.models.manifest import Component, Tensor
from diffusette.runtime.adapters import merge_weights
from diffusette.runtime.engine import providers
from diffusette.runtime.engine.session import SessionOptions, open_session

LAYER = "down_blocks.0.downsamplers.0.conv"
RNG = np.random.default_rng(2)
SIZES = np.geomspace(0.1, 30, 16).astype(np.float32)
"""Magnitudes of the input channels, and in reverse of the output channels."""


def normal(*shape, scale=1.0):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


WEIGHT = normal(16, 16, 3, 3, scale=0.1) * SIZES[::-1, None, None, None] / SIZES[None, :, None, None]
BIAS = normal(16)
FEEDS = [{"x": normal(1, 16, 12, 12) * SIZES[None, :, None, None]} for _ in range(4)]


def model():
    """x → LeakyRelu → the convolution, stride 2 → Add to itself: an activation before it and a node after it."""
    nodes = [
        helper.make_node("LeakyRelu", ["x"], ["h"], alpha=0.9),
        helper.make_node("Conv", ["h", f"{LAYER}.weight", f"{LAYER}.bias"], ["d"], strides=[2, 2], pads=[1, 1, 1, 1], name="down"),
        helper.make_node("Add", ["d", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHT, f"{LAYER}.weight"), numpy_helper.from_array(BIAS, f"{LAYER}.bias")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def int8(_layer):
    return "int8"


@pytest.fixture
def observed(tmp_path):
    save.save(model(), tmp_path / "float")
    names = quantize.wanted_tensors(model(), int8)
    return ranges.observe(Pieces(tmp_path / "float", open_graph, watched=names), names, FEEDS)[0]


def run(folder, feed):
    return open_graph(folder / save.GRAPH).run(feed)["y"]


def test_scaling_keeps_the_output_and_evens_the_ranges_of_the_channels_around_the_convolution(observed, tmp_path):
    scales = residual_scaling.scales(model(), int8, observed)
    scaled = residual_scaling.apply(model(), scales)
    save.save(scaled, tmp_path / "scaled")
    expected, found = (run(tmp_path / name, FEEDS[0]) for name in ("float", "scaled"))
    assert parity.snr(expected, found) > 110
    conv = next(node for node in scaled.graph if node.op_type == "Conv")
    predicted = residual_scaling.divided(model(), observed, scales)
    names = {conv.inputs[0].name: -1, conv.outputs[0].name: -1}
    assert names.keys() == predicted.keys() - observed.keys()
    measured, _ = ranges.observe(Pieces(tmp_path / "scaled", open_graph, watched=names), dict.fromkeys(names, 1), FEEDS)
    for name, tensor in measured.items():
        np.testing.assert_allclose(tensor.peaks, predicted[name].peaks, rtol=1e-4)
        assert tensor.peaks.max() < 4 * tensor.peaks.min()


def test_int8_loses_less_on_scaled_channels(observed, tmp_path):
    scales = residual_scaling.scales(model(), int8, observed)
    expected, snrs = run(tmp_path / "float", FEEDS[1]), []
    for found in ({}, scales):
        calibration = quantize.Calibration(residual_scaling.divided(model(), observed, found))
        for form in ("operators", "qdq"):
            save.save(quantize.quantize(residual_scaling.apply(model(), found), int8, calibration, form)[0], tmp_path / "made")
            small = np.argmin(SIZES[::-1])  # the error of the smallest channel
            snrs.append(parity.snr(expected[:, small], run(tmp_path / "made", FEEDS[1])[:, small]))
    assert min(snrs[2:]) > max(snrs[:2]) + 20


def test_only_layers_that_change_the_resolution_are_scaled(observed):
    assert list(residual_scaling.scales(model(), int8, observed)) == [LAYER]
    assert residual_scaling.scales(model(), lambda _: "half", observed) == {}
    other = model()
    other.graph.initializers[f"{LAYER}.weight"].name = "conv_in.weight"
    assert residual_scaling.scales(other, int8, observed) == {}


def exported(tmp_path, bar):
    """The graph as the export quantizes it."""
    save.save(model(), tmp_path / "float")
    component = Component("unet/model.onnx", "fp32", {"x": Tensor("float32", ("n", 16, "h", "w"))}, {}, 120.0)
    return lower_precision.to_integers("unet", tmp_path / "float", tmp_path / "made", FEEDS, component, bar, "operators")


def test_a_lora_changes_a_scaled_convolution_like_the_original(tmp_path):
    made = exported(tmp_path, 24.0)
    assert [row.kind for row in made.rows] == ["int8"]
    graph, delta = tmp_path / "made" / save.GRAPH, WEIGHT * normal(*WEIGHT.shape, scale=0.1)
    weights = merge_weights.added(graph, onnx_reader.read(graph).initializers, LAYER, delta)
    changed = open_session(graph, providers.resolve("cpu"), SessionOptions(weights=weights)).run(FEEDS[2])["y"]
    expected = model()
    expected.graph.initializers[f"{LAYER}.weight"].const_value = ir.tensor(WEIGHT + delta, name=f"{LAYER}.weight")
    save.save(expected, tmp_path / "added")
    wanted, before = run(tmp_path / "added", FEEDS[2]), run(tmp_path / "float", FEEDS[2])
    assert parity.snr(wanted, before) < 25
    assert parity.snr(wanted, changed) > 30


def test_a_layer_that_went_back_to_float_is_not_scaled(tmp_path):
    made = exported(tmp_path, 60.0)
    assert [(row.kind, row.recipe) for row in made.rows] == [("half", "int8")]
    operators = [node.op_type for node in ir.load(tmp_path / "made" / save.GRAPH).graph]
    assert "Mul" not in operators
    assert not [name for name in onnx_reader.read(tmp_path / "made" / save.GRAPH).initializers if name.endswith("_factors")]
