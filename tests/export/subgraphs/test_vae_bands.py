"""Splitting an autoencoder at its group normalizations: the pieces, and that together they equal the whole graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from diffusette.export.runtime_bridge import open_graph
from diffusette.export.subgraphs import rematerialize, vae_bands
from diffusette.models import manifest as manifests
from diffusette.models.bundle import read_manifest
from diffusette.models.manifest import Component
from diffusette.runtime.engine import vae_bands as runtime_bands
from tests.support import small_graphs

BundleOf = Callable[[str], tuple[Path, Path]]
HALVES = {"vae_decoder": "latent_sample", "vae_encoder": "sample"}


@pytest.fixture(scope="module", params=sorted(HALVES))
def cut(request: pytest.FixtureRequest, sd1_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Component]:
    """The folder of a split half of a tiny autoencoder, and its component."""
    folder = tmp_path_factory.mktemp("cut") / request.param
    shutil.copytree(sd1_bundle / request.param, folder)
    component, note = vae_bands.add(folder, read_manifest(sd1_bundle).components[request.param])
    assert not note
    return folder, component


def in_bands(folder: Path, component: Component, image: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """Return the output of the pieces for `image` in bands of `size` bytes, and the number of runs."""
    sessions = {name: open_graph(folder / f"{name}.onnx") for name in component.pieces}
    runs: list[str] = []

    def call(piece: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        runs.append(piece)
        return sessions[piece].run(feeds)

    return next(iter(runtime_bands.run(component.pieces, call, {HALVES[folder.name]: image}, size).values())), len(runs)


@pytest.mark.parametrize(("height", "width"), [(16, 20), (18, 12), (2, 6)])
def test_bands_of_any_height_return_the_output_of_the_whole_graph(cut: tuple[Path, Component], height: int, width: int) -> None:
    folder, component = cut
    channels = component.inputs[HALVES[folder.name]].shape[1]
    assert isinstance(channels, int)
    image = np.random.default_rng(0).standard_normal((2, channels, height, width), np.float32)
    expected = next(iter(open_graph(folder / "model.onnx").run({HALVES[folder.name]: image}).values()))
    counts: list[int] = []
    for size in (1 << 30, 20_000, 1):
        found, runs = in_bands(folder, component, image, size)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
        counts.append(runs)
    assert counts[0] == len(component.pieces) <= counts[1] <= counts[2]
    assert counts[2] > counts[0] + height // 4


def test_normalization_is_exact_for_values_far_from_zero(cut: tuple[Path, Component]) -> None:
    folder, component = cut
    channels = component.inputs[HALVES[folder.name]].shape[1]
    assert isinstance(channels, int)
    image = 300.0 + np.random.default_rng(1).standard_normal((1, channels, 16, 16)).astype(np.float32)
    expected = next(iter(open_graph(folder / "model.onnx").run({HALVES[folder.name]: image}).values()))
    found, _ = in_bands(folder, component, image, 1)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-4


def test_the_pieces_share_the_weights_and_attention_is_in_the_piece_that_runs_on_whole_tensors(cut: tuple[Path, Component]) -> None:
    folder, component = cut
    operators = {name: {node.op_type for node in onnx.load(folder / f"{name}.onnx").graph.node} for name in component.pieces}
    whole = [name for name, (_, bands) in component.pieces.items() if bands.halo is None]
    assert len(whole) == 1
    assert {name for name, found in operators.items() if "MultiHeadAttention" in found} == set(whole)
    assert not any("InstanceNormalization" in found for name, found in operators.items() if name not in whole)
    weights = [value.name for value in onnx.load(folder / "model.onnx").graph.initializer if value.name.endswith("conv1.weight")]
    used = [value.name for name in component.pieces for value in onnx.load(folder / f"{name}.onnx").graph.initializer]
    assert sorted(name for name in used if name.endswith("conv1.weight")) == sorted(weights)


def test_the_manifest_lists_the_inputs_and_outputs_of_each_piece(cut: tuple[Path, Component]) -> None:
    folder, component = cut
    known = set(component.inputs)
    for name, (graph, bands) in component.pieces.items():
        proto = onnx.load(folder / f"{name}.onnx").graph
        assert [value.name for value in proto.input] == list(graph.inputs)
        assert {value.name for value in proto.output} == set(graph.outputs)
        assert {tensor for tensor in bands.rows if tensor in graph.inputs} <= known
        assert all({f"{tensor}.scale", f"{tensor}.shift"} <= graph.inputs.keys() for tensor in bands.norms)
        known |= graph.outputs.keys()
    assert set(component.outputs) <= known


def test_an_autoencoder_with_two_resolutions_is_split_where_the_resolution_changes(tmp_path: Path) -> None:
    model = ir.from_proto(two_resolutions())
    normalized = vae_bands.externalize_normalizations(model)
    found = vae_bands.pieces(model, normalized)
    assert [piece.halo for piece in found] == [None, 1, 1]
    assert [sorted(piece.rows.values()) for piece in found] == [[1, 1], [1, 2], [1, 1]]


def two_resolutions() -> onnx.ModelProto:
    """z (1, 4, h, w) → normalization, upsampling, convolution, normalization, convolution."""
    helper, tensor = onnx.helper, onnx.TensorProto
    nodes = [*normalization("z", "a"), helper.make_node("Resize", ["a", "", "twice"], ["b"], **RESIZE)]
    nodes += [helper.make_node("Conv", ["b", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    nodes += [*normalization("c", "d"), helper.make_node("Conv", ["d", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    weights = {"twice": np.array([1, 1, 2, 2], np.float32), "w": np.ones((4, 4, 3, 3), np.float32)}
    weights |= {"split": np.array([0, 2, -1]), "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32)}
    shapes = {"z": (tensor.FLOAT, [1, 4, "h", "w"])}, {"y": (tensor.FLOAT, [1, 4, "H", "W"])}
    return small_graphs.model(nodes, *shapes, weights)


def normalization(x: str, y: str) -> list[onnx.NodeProto]:
    """A group normalization as the exporter writes it."""
    node = onnx.helper.make_node
    return [
        node("Reshape", [x, "split"], [f"{x}_split"]),
        node("InstanceNormalization", [f"{x}_split", "ones", "zeros"], [f"{x}_normal"]),
        node("Shape", [x], [f"{x}_shape"]),
        node("Reshape", [f"{x}_normal", f"{x}_shape"], [y]),
    ]


RESIZE = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}


def test_a_graph_without_normalizations_is_not_split_and_a_note_gives_the_reason(tmp_path: Path, sd1_bundle: Path) -> None:
    small_graphs.convolution(tmp_path / "vae_decoder" / "model.onnx")
    component = read_manifest(sd1_bundle).components["vae_decoder"]
    made, note = vae_bands.add(tmp_path / "vae_decoder", component)
    assert made is component
    assert "no group normalizations" in note
    assert [path.name for path in (tmp_path / "vae_decoder").iterdir()] == ["model.onnx"]


def test_graphs_that_are_not_pieces_have_no_bands_in_the_manifest(sd1_bundle: Path) -> None:
    graph = read_manifest(sd1_bundle).components["unet"].graphs["full"]
    assert b"bands" not in msgspec.json.encode(graph)


def test_an_int8_decoder_is_split_too(tmp_path: Path) -> None:
    demo = Path(__file__).parents[3] / "models" / "demo" / "bundle"
    whole = read_manifest(demo).components["vae_decoder"]
    assert whole.precision == "int8"
    shutil.copytree(demo / "vae_decoder", tmp_path / "vae_decoder")
    component, note = vae_bands.add(tmp_path / "vae_decoder", whole)
    assert not note
    channels = component.inputs["latent_sample"].shape[1]
    assert isinstance(channels, int)
    latents = np.random.default_rng(0).standard_normal((1, channels, 16, 16), np.float32)
    expected = open_graph(tmp_path / "vae_decoder" / "model.onnx").run({"latent_sample": latents})["sample"]
    found, _ = in_bands(tmp_path / "vae_decoder", component, latents, 1 << 16)
    error = np.sqrt(np.mean((found - expected) ** 2)) / np.sqrt(np.mean(expected**2))
    assert error < 1e-3  # 60 dB


def rounding() -> onnx.ModelProto:
    """z → normalization, upsampling, convolution → a; b = a + conv(norm(a)); c = b + conv(norm(b)); c → normalization, convolution.

    All convolutions except the last are int8.
    """
    node = onnx.helper.make_node
    three = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [*normalization("z", "z1"), node("Resize", ["z1", "", "twice"], ["z2"], **RESIZE)]

    def convolved(x: str, y: str) -> None:
        nodes.append(node("QuantizeLinear", [x, "step", "zero"], [f"{x}_stored"]))
        given = [f"{x}_stored", "step", "zero", f"{y}_w8", "steps", f"{y}_zeros8", "wide", "zero"]
        nodes.extend([node("QLinearConv", given, [f"{y}_stored"], **three), node("DequantizeLinear", [f"{y}_stored", "wide", "zero"], [y])])

    convolved("z2", "a0")
    nodes.append(node("Mul", ["a0", "factors"], ["a"]))
    for x, y in (("a", "b"), ("b", "c")):
        nodes.extend(normalization(x, f"{x}1"))
        convolved(f"{x}1", f"{x}2")
        nodes.append(node("Add", [x, f"{x}2"], [y]))
    nodes += [*normalization("c", "c1"), node("Conv", ["c1", "w"], ["y"], **three)]
    rng = np.random.default_rng(0)
    weights = {"twice": np.array([1, 1, 2, 2], np.float32), "w": rng.standard_normal((4, 4, 3, 3), np.float32)}
    weights |= {"split": np.array([0, 2, -1]), "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32)}
    w8 = rng.integers(-99, 99, (4, 4, 3, 3)).astype(np.int8)
    for y in ("a0", "a2", "b2"):  # each convolution has weights and zero points of its own, as export writes them
        weights |= {f"{y}_w8": w8, f"{y}_zeros8": np.zeros(4, np.int8)}
    weights |= {"steps": np.full(4, 0.01, np.float32), "zero": np.array(128, np.uint8)}
    weights |= {"factors": rng.uniform(1, 2, (1, 4, 1, 1)).astype(np.float32)}
    weights |= {"step": np.array(0.03, np.float32), "wide": np.array(0.1, np.float32)}
    shapes = {"z": (onnx.TensorProto.FLOAT, ["n", 4, "h", "w"])}, {"y": (onnx.TensorProto.FLOAT, ["n", 4, "H", "W"])}
    return small_graphs.model(nodes, *shapes, weights)


def cut_rounding(folder: Path) -> Component:
    small_graphs.save(rounding(), folder / "model.onnx")
    ports = {name: manifests.Tensor("float32", ("n", 4, "h", "w")) for name in "zy"}
    whole = Component("vae_decoder/model.onnx", "int8", {"z": ports["z"]}, {"y": ports["y"]}, 0.0)
    made, note = vae_bands.add(folder, whole)
    assert not note
    return made


def test_pieces_of_int8_layers_exchange_int8_tensors_and_recompute_sums_from_them(tmp_path: Path) -> None:
    pieces = cut_rounding(tmp_path / "vae_decoder").pieces
    inputs = [{name: tensor.dtype for name, tensor in graph.inputs.items() if name in bands.rows} for graph, bands in pieces.values()]
    assert inputs[0] == {"z": "float32"}
    assert set(inputs[1]) == {"z1"}  # normalized at the lowest resolution, in float
    assert inputs[2:] == [
        {"a0_stored": "uint8"},
        {"a0_stored": "uint8", "a2_stored": "uint8"},
        {"a0_stored": "uint8", "a2_stored": "uint8", "b2_stored": "uint8"},
    ]
    assert [sorted(bands.norms) for _, bands in pieces.values()] == [[], [], ["a"], ["b"], ["c"]]
    assert all(tensor.dtype == "uint8" for graph, _ in pieces.values() for name, tensor in graph.outputs.items() if "stored" in name)


@pytest.mark.parametrize("size", [1 << 20, 4000, 1])
def test_recomputed_tensors_are_equal_bit_for_bit(tmp_path: Path, size: int) -> None:
    component = cut_rounding(tmp_path / "vae_decoder")
    sessions = {name: open_graph(tmp_path / "vae_decoder" / f"{name}.onnx") for name in component.pieces}
    z = np.random.default_rng(1).standard_normal((2, 4, 12, 10), np.float32)
    given: dict[str, np.ndarray] = {}

    def call(piece: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given.update({name: value for name, value in feeds.items() if name.endswith((".scale", ".shift"))})
        return sessions[piece].run(feeds)

    found = runtime_bands.run(component.pieces, call, {"z": z}, size)["y"]
    model = ir.from_proto(rounding())
    vae_bands.externalize_normalizations(model)  # the same computation, not split and without recomputation
    small_graphs.save(ir.to_proto(model), tmp_path / "whole.onnx")
    expected = open_graph(tmp_path / "whole.onnx").run({"z": z, **given})["y"]
    np.testing.assert_array_equal(found, expected)


def test_a_tensor_computed_from_many_int8_tensors_is_not_recomputed() -> None:
    node = onnx.helper.make_node
    step = {"step": np.array(0.1, np.float32), "zero": np.array(0, np.uint8)}
    parts = [f"p{number}" for number in range(6)]
    nodes = [node("DequantizeLinear", [part, "step", "zero"], [f"{part}_real"]) for part in parts]
    nodes += [node("Add", [f"{one}_real" if one == "p0" else f"{one}_sum", f"{two}_real"], [f"{two}_sum"]) for one, two in pairwise(parts)]
    nodes += [node("Relu", [f"{part}_sum"], [f"{part}_out"]) for part in parts[1:]]
    kinds = onnx.TensorProto
    inputs = {part: (kinds.UINT8, [1, 4, "h", "w"]) for part in parts}
    outputs = {f"{part}_out": (kinds.FLOAT, [1, 4, "h", "w"]) for part in parts[1:]}
    model = ir.from_proto(small_graphs.model(nodes, inputs, outputs, step))
    piece_of = rematerialize.recompute(model, {id(node): int(node.op_type == "Relu") for node in model.graph})
    sums = {node.outputs[0].name: node.inputs[0] for node in model.graph if node.op_type == "Relu"}
    computed_in = {name: piece_of[id(value.producer())] for name, value in sums.items() if value is not None}
    assert computed_in == {"p1_out": 1, "p2_out": 1, "p3_out": 0, "p4_out": 0, "p5_out": 0}


def test_float_layers_exchange_float_tensors_next_to_int8_layers(tmp_path: Path) -> None:
    demo = Path(__file__).parents[3] / "models" / "demo" / "bundle"
    shutil.copytree(demo / "vae_decoder", tmp_path / "vae_decoder")
    component, _ = vae_bands.add(tmp_path / "vae_decoder", read_manifest(demo).components["vae_decoder"])
    kinds: dict[str, set[str]] = {}
    for name, (graph, bands) in component.pieces.items():
        operators = {
            value: node.op_type for node in onnx.load(tmp_path / "vae_decoder" / f"{name}.onnx").graph.node for value in node.output
        }
        for value in graph.outputs.keys() & bands.rows.keys():
            kinds.setdefault(graph.outputs[value].dtype, set()).add(operators[value])
    assert kinds["uint8"] <= {"QLinearConv", "QuantizeLinear"}
    assert kinds["float32"] == {"Conv", "Add"}
