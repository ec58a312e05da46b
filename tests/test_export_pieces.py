"""pieces.py and sensitivity.py: a graph run piece by piece gives what it gives as a whole, and each layer's cost is told apart."""

from __future__ import annotations

import numpy as np
import pytest

from diffusette.export import equalize, parity, quantize, ranges, sensitivity, write
from diffusette.export.calibrate import open_graph
from diffusette.export.layers import layers
from diffusette.export.pieces import Pieces, sweep
from diffusette.models.manifest import Tensor
from tests.test_export_quantize import FEEDS, model


@pytest.fixture
def folder(tmp_path):
    write.save(model(), tmp_path / "float")
    return tmp_path / "float"


@pytest.mark.parametrize("limit", [1, 20_000, 10**9])
def test_a_graph_in_pieces_gives_what_it_gives_whole(folder, limit):
    pieces = Pieces(folder, open_graph, watched=["c1", "hg"], limit=limit)
    assert (len(pieces) == 1) == (limit == 10**9)
    whole = open_graph(folder / write.GRAPH)
    for feed, one in zip(FEEDS, pieces.run_all(FEEDS), strict=True):
        np.testing.assert_allclose(one["y"], whole.run(feed)["y"], rtol=1e-4, atol=1e-4)
    found = pieces.run(FEEDS[0])
    assert set(found) == {"y", "c1", "hg"}
    assert found["c1"].shape == (1, 32, 8, 8)
    assert sorted(path.name for path in folder.iterdir()) == [write.GRAPH]


def test_what_is_added_to_a_tensor_goes_on_from_there(folder):
    pieces = Pieces(folder, open_graph, nudged=["m2"], limit=1)
    delta = np.ones((1, 64, 32), np.float32)
    plain, moved = dict(FEEDS[0]), None
    for place in range(len(pieces)):
        if place == pieces.places["m2"]:
            moved, _ = pieces.step(place, plain, {"m2": delta})
        elif moved is not None:
            moved, _ = pieces.step(place, moved)
        plain, _ = pieces.step(place, plain)
    weight = model().graph.initializers["last.weight"].const_value.numpy()
    np.testing.assert_allclose(moved["y"] - plain["y"], np.broadcast_to(weight.sum(axis=0), moved["y"].shape), rtol=1e-3, atol=1e-3)


def test_pieces_that_a_killed_run_left_are_swept_away(folder):
    (folder / "piece-3.onnx").write_text("x")
    sweep(folder.parent)
    assert [path.name for path in folder.iterdir()] == [write.GRAPH]


@pytest.mark.parametrize("limit", [1, 10**9])
def test_the_cost_of_a_layer_is_what_the_output_loses_when_it_alone_is_quantized(folder, tmp_path, limit):
    plain = model()
    found = layers(plain)
    names = quantize.wanted_tensors(plain, lambda _: "int8") | equalize.watched(plain)
    seen, _ = ranges.observe(Pieces(folder, open_graph, watched=names), names, FEEDS)
    scales = equalize.scales(plain, seen)
    calibration = quantize.Calibration(equalize.divided(plain, seen, scales))
    factors = equalize.factors(plain, scales)

    def made(name, kinds):
        write.save(quantize.quantize(equalize.apply(model(), scales), kinds, calibration)[0], tmp_path / name)
        return open_graph(tmp_path / name / write.GRAPH).run(FEEDS[1])["y"]

    whole, exact = made("all", lambda _: "int8"), open_graph(folder / write.GRAPH).run(FEEDS[1])["y"]
    costs = sensitivity.costs(folder, tmp_path / "all", found, factors, [FEEDS[1]], open_graph, limit)
    for layer in found:
        alone = made("one", lambda name, layer=layer: "int8" if name == layer.name else "float")
        assert sensitivity.db(costs[layer.name].noise) == pytest.approx(parity.snr(exact, alone), abs=0.3), layer.name
    total = sensitivity.db(sum(cost.noise for cost in costs.values()))
    assert total == pytest.approx(parity.snr(exact, whole), abs=1.5)
    assert costs["a"].work == 9 * 16 * 32 * 8 * 8


def test_layers_of_large_components_are_looked_at_on_small_pictures_where_the_graph_takes_any_size() -> None:
    picture = np.arange(3 * 64 * 48, dtype=np.float32).reshape(1, 3, 64, 48)
    free, fixed = Tensor("float32", ("batch_size", 3, "height", "width")), Tensor("float32", ("batch_size", 3, 64, 48))
    text = np.zeros((1, 77), np.int64)
    inputs = {"free": free, "fixed": fixed, "text": Tensor("int64", ("batch_size", "sequence_length"))}
    found = sensitivity.cut({"free": picture, "fixed": picture, "text": text}, inputs)
    np.testing.assert_array_equal(found["free"], picture[:, :, 24:40, 16:32])
    np.testing.assert_array_equal(found["fixed"], picture)
    np.testing.assert_array_equal(found["text"], text)
