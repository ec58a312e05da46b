"""A graph run in pieces returns the same outputs as the whole graph, and the cost of each layer is measured separately."""

from __future__ import annotations

import numpy as np
import pytest

from diffusette.export.graphs import parity, save
from diffusette.export.graphs.run_in_pieces import Pieces, sweep
from diffusette.export.quantization import quantize, ranges, sensitivity, smooth_quant
from diffusette.export.quantization.layers import layers
from diffusette.export.runtime_bridge import open_graph
from diffusette.models.manifest import Tensor
from tests.export.quantization.test_quantize import FEEDS, model


@pytest.fixture
def folder(tmp_path):
    save.save(model(), tmp_path / "float")
    return tmp_path / "float"


@pytest.mark.parametrize("limit", [1, 20_000, 10**9])
def test_a_graph_run_in_pieces_returns_the_same_outputs_as_the_whole_graph(folder, limit):
    pieces = Pieces(folder, open_graph, watched=["c1", "hg"], limit=limit)
    assert (len(pieces) == 1) == (limit == 10**9)
    whole = open_graph(folder / save.GRAPH)
    for feed, outputs in zip(FEEDS, pieces.run_all(FEEDS), strict=True):
        np.testing.assert_allclose(outputs["y"], whole.run(feed)["y"], rtol=1e-4, atol=1e-4)
    found = pieces.run(FEEDS[0])
    assert set(found) == {"y", "c1", "hg"}
    assert found["c1"].shape == (1, 32, 8, 8)
    assert sorted(path.name for path in folder.iterdir()) == [save.GRAPH]


def test_a_difference_added_to_a_tensor_reaches_the_output(folder):
    pieces = Pieces(folder, open_graph, nudged=["m2"], limit=1)
    delta = np.ones((1, 64, 32), np.float32)
    state, nudged = dict(FEEDS[0]), None
    for number in range(len(pieces)):
        if number == pieces.piece_of["m2"]:
            nudged, _ = pieces.step(number, state, {"m2": delta})
        elif nudged is not None:
            nudged, _ = pieces.step(number, nudged)
        state, _ = pieces.step(number, state)
    weight = model().graph.initializers["last.weight"].const_value.numpy()
    np.testing.assert_allclose(nudged["y"] - state["y"], np.broadcast_to(weight.sum(axis=0), nudged["y"].shape), rtol=1e-3, atol=1e-3)


def test_sweep_removes_the_files_of_an_interrupted_run(folder):
    (folder / "piece-3.onnx").write_text("x")
    sweep(folder.parent)
    assert [path.name for path in folder.iterdir()] == [save.GRAPH]


@pytest.mark.parametrize("limit", [1, 10**9])
def test_the_cost_of_a_layer_is_the_noise_at_the_output_when_only_it_is_quantized(folder, tmp_path, limit):
    floats = model()
    found = layers(floats)
    names = quantize.wanted_tensors(floats, lambda _: "int8") | smooth_quant.watched(floats)
    observed, _ = ranges.observe(Pieces(folder, open_graph, watched=names), names, FEEDS)
    scales = smooth_quant.scales(floats, observed)
    calibration = quantize.Calibration(smooth_quant.divided(floats, observed, scales))
    factors = smooth_quant.factors(floats, scales)

    def quantized(name, kinds):
        save.save(quantize.quantize(smooth_quant.apply(model(), scales), kinds, calibration)[0], tmp_path / name)
        return open_graph(tmp_path / name / save.GRAPH).run(FEEDS[1])["y"]

    whole, exact = quantized("all", lambda _: "int8"), open_graph(folder / save.GRAPH).run(FEEDS[1])["y"]
    costs = sensitivity.costs(folder, tmp_path / "all", found, factors, [FEEDS[1]], open_graph, limit)
    for layer in found:
        alone = quantized("one", lambda name, layer=layer: "int8" if name == layer.name else "float")
        assert sensitivity.db(costs[layer.name].noise) == pytest.approx(parity.snr(exact, alone), abs=0.3), layer.name
    total = sensitivity.db(sum(cost.noise for cost in costs.values()))
    assert total == pytest.approx(parity.snr(exact, whole), abs=1.5)
    assert costs["a"].work == 9 * 16 * 32 * 8 * 8


def test_images_are_cropped_for_measuring_large_components_if_the_graph_accepts_any_size() -> None:
    image = np.arange(3 * 64 * 48, dtype=np.float32).reshape(1, 3, 64, 48)
    free, fixed = Tensor("float32", ("batch_size", 3, "height", "width")), Tensor("float32", ("batch_size", 3, 64, 48))
    text = np.zeros((1, 77), np.int64)
    inputs = {"free": free, "fixed": fixed, "text": Tensor("int64", ("batch_size", "sequence_length"))}
    found = sensitivity.crop({"free": image, "fixed": image, "text": text}, inputs)
    np.testing.assert_array_equal(found["free"], image[:, :, 24:40, 16:32])
    np.testing.assert_array_equal(found["fixed"], image)
    np.testing.assert_array_equal(found["text"], text)
