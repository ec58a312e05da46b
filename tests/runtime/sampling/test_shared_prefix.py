"""The shared prefix of a U-Net runs once for a prompt and its negative prompt, and the numbers stay the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from diffusette.benchmarks.measure.session_recorder import recorded
from diffusette.export.graphs import save
from diffusette.export.runtime_bridge import open_graph
from diffusette.export.subgraphs import shared_prefix as export_prefix
from diffusette.export.subgraphs import step_caching
from diffusette.models import manifest as manifests
from diffusette.models.bundle import DEMO, open_bundle, read_manifest, verify
from diffusette.models.manifest import Component, Tensor
from diffusette.runtime.pipeline import Pipeline, load
from diffusette.runtime.request import Request
from diffusette.runtime.sampling.shared_prefix import SharedPrefixUnet
from tests.export.subgraphs.test_step_caching import feeds_of
from tests.support import small_graphs

PROMPT = "red apple on a blue table"


def unet_of(bundle: Path) -> Component:
    return read_manifest(bundle).components["unet"]


@pytest.mark.parametrize("side", [8, 12])
def test_prefix_and_rest_equal_the_whole_model_bit_for_bit(sd1_bundle: Path, side: int) -> None:
    for bundle, size in ((sd1_bundle, side), (DEMO, 2 * side)):
        feeds = feeds_of(bundle, size)
        expected = open_graph(bundle / "unet/model.onnx").run(feeds)["out_sample"]
        both = SharedPrefixUnet(open_graph(bundle / "unet/stem.onnx"), open_graph(bundle / "unet/full.onnx"))
        np.testing.assert_array_equal(both.run(feeds | {"token_stride": np.ones(2, np.int64)})["out_sample"], expected)


def test_the_prefix_has_the_nodes_before_the_prompt_and_the_rest_has_none_of_them(sd1_bundle: Path) -> None:
    for bundle in (sd1_bundle, DEMO):
        stem, full = (onnx.load(bundle / f"unet/{name}.onnx", load_external_data=False).graph for name in ("stem", "full"))
        early, late = ({one.name for one in graph.initializer if "_blocks." in one.name} for graph in (stem, full))
        assert any("attn2.to_q" in name for name in early)
        assert not any("attn2.to_k" in name or "attn2.to_v" in name for name in early)
        assert not {name for name in early & late if "time_emb" not in name}
        assert "encoder_hidden_states" not in {one.name for one in stem.input}


def test_cutting_twice_gives_the_same_files(sd1_bundle: Path, tmp_path: Path) -> None:
    component, found = unet_of(sd1_bundle), list[dict[str, bytes]]()
    for number in range(3):
        folder = tmp_path / str(number) / "unet"
        shutil.copytree(sd1_bundle / "unet", folder)
        made = component
        for add in (step_caching.add, export_prefix.add):
            made, _ = add(folder, made)
        found.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert found[0] == found[1] == found[2]


def test_a_model_with_the_prompt_in_its_time_embedding_stays_one_graph(bundle_of: Callable[[str], tuple[Path, Path]]) -> None:
    graphs = unet_of(bundle_of("sdxl")[1]).graphs
    assert "stem" not in graphs
    assert "sample" in graphs["full"].inputs


def test_only_targets_that_gain_from_it_are_cut() -> None:
    assert [target for target in ("portable", "cpu", "cuda", "directml", "openvino", "webgpu") if export_prefix.pays(target)] == [
        "portable",
        "cpu",
    ]


def test_a_graph_that_cannot_be_cut_stays_unchanged(sd1_bundle: Path, tmp_path: Path) -> None:
    small_graphs.convolution(tmp_path / "unet/full.onnx")
    before = (tmp_path / "unet/full.onnx").read_bytes()
    component = unet_of(sd1_bundle)
    assert export_prefix.add(tmp_path / "unet", component) == (component, "")
    assert [path.name for path in (tmp_path / "unet").iterdir()] == ["full.onnx"]
    assert (tmp_path / "unet/full.onnx").read_bytes() == before


def test_graphs_that_disagree_with_the_model_are_not_kept(sd1_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    shutil.copytree(sd1_bundle / "unet", folder)
    whole = onnx.load(folder / "model.onnx")
    onnx.save(whole, folder / "full.onnx")
    for one in whole.graph.initializer:
        if one.name == "conv_out.bias":
            one.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one) + 100, one.name))
    onnx.save(whole, folder / "model.onnx")
    component = unet_of(sd1_bundle)
    graph = msgspec.structs.replace(component.graphs["full"], outputs=component.outputs, inputs=component.inputs)
    component = msgspec.structs.replace(component, graphs={"full": graph})
    made, note = export_prefix.add(folder, component)
    assert made is component
    assert "the U-Net has no shared prefix: split, it reaches" in note
    assert not list(folder.glob("*.part*"))


def test_a_graph_that_computes_in_half_precision_stays_unchanged(sd1_bundle: Path, tmp_path: Path) -> None:
    node, three = onnx.helper.make_node, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [node("Cast", ["sample"], ["x0"], to=onnx.TensorProto.FLOAT16)]
    nodes += [node("Conv", [f"x{number}", "w"], [f"x{number + 1}"], **three) for number in range(3)]
    nodes += [
        node("Cast", ["encoder_hidden_states"], ["text"], to=onnx.TensorProto.FLOAT16),
        node("ReduceMean", ["text"], ["mean"], keepdims=0),
    ]
    nodes += [node("Add", ["x3", "mean"], ["y"]), node("Cast", ["y"], ["out_sample"], to=onnx.TensorProto.FLOAT)]
    pixels = (onnx.TensorProto.FLOAT, ["batch_size", 4, "height", "width"])
    inputs = {"sample": pixels, "encoder_hidden_states": (onnx.TensorProto.FLOAT, ["batch_size", "sequence_length", 32])}
    weights = {"w": np.ones((4, 4, 3, 3), np.float16)}
    small_graphs.save(small_graphs.model(nodes, inputs, {"out_sample": pixels}, weights), tmp_path / "unet/full.onnx")
    component = unet_of(sd1_bundle)
    graph = msgspec.structs.replace(component.graphs["full"], inputs={name: component.inputs[name] for name in inputs})
    component = msgspec.structs.replace(component, graphs={"full": graph})
    made, note = export_prefix.add(tmp_path / "unet", component)
    assert made is component
    assert "half precision" in note
    assert [path.name for path in (tmp_path / "unet").iterdir() if "onnx" in path.suffix] == ["full.onnx"]


@dataclass
class Counted:
    """A session that counts its runs and returns the sum of its inputs under its name."""

    inputs: Mapping[str, Tensor]
    gives: str
    runs: list[float] = field(default_factory=list)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert feeds.keys() == self.inputs.keys()
        total = float(sum(np.sum(array, dtype=np.float64) for array in feeds.values()))
        self.runs.append(total)
        return {self.gives: np.array(total)}


def test_the_prefix_runs_again_only_for_another_sample_or_timestep() -> None:
    one = Tensor("float32", ())
    stem = Counted({"sample": one, "timestep": one}, "stem_0")
    rest = Counted({"stem_0": one, "timestep": one, "text": one}, "out_sample")
    both = SharedPrefixUnet(stem, rest)
    assert both.inputs.keys() == {"sample", "timestep", "text"}
    sample, time = np.array([1.0, 2.0]), np.array(10.0)

    def run(text: float) -> float:
        return float(both.run({"sample": sample, "timestep": time, "text": np.array(text)})["out_sample"])

    assert (run(100.0), run(200.0)) == (13.0 + 10 + 100, 13.0 + 10 + 200)
    assert stem.runs == [13.0]
    sample += 1  # the same array
    assert (run(100.0), run(200.0)) == (15.0 + 10 + 100, 15.0 + 10 + 200)
    time = np.array(20.0)
    run(100.0)
    assert stem.runs == [13.0, 15.0, 25.0]


def generated(pipeline: Pipeline, **fields: object) -> np.ndarray:
    return np.asarray(pipeline.generate(Request(PROMPT, seed=5, width=16, height=16, steps=6, **fields)).images[0])


def without_stem(bundle: Path, folder: Path) -> Path:
    """A copy of `bundle` whose U-Net is a single graph."""
    shutil.copytree(bundle, folder)
    said = read_manifest(bundle)
    gone = {f"unet/{name}.onnx" for name in said.components["unet"].graphs}
    for name in gone:
        (folder / name).unlink()
    components = {**said.components, "unet": msgspec.structs.replace(said.components["unet"], graphs={})}
    files = {name: file for name, file in said.files.items() if name not in gone}
    (folder / manifests.FILE_NAME).write_bytes(manifests.encode(msgspec.structs.replace(said, components=components, files=files)))
    return folder


@pytest.mark.parametrize("plan", ["resident", "sequential", "streamed"])
@pytest.mark.parametrize("prompt", ["a cat", "a cat AND a red dog :0.7", "a [cat:dog:0.5]"])
def test_images_are_the_same_with_and_without_a_shared_prefix(sd1_bundle: Path, tmp_path: Path, plan: str, prompt: str) -> None:
    request = Request(prompt, negative="grey", seed=5, width=16, height=16, steps=4)
    images: list[np.ndarray] = []
    for bundle in (sd1_bundle, without_stem(sd1_bundle, tmp_path / "whole")):
        with load(bundle, "cpu", plan, threads=1) as pipeline:
            images.append(np.asarray(pipeline.generate(request).images[0]))
    np.testing.assert_array_equal(images[0], images[1])


def test_with_little_memory_exact_images_use_the_whole_graph_which_needs_less(sd1_bundle: Path) -> None:
    for plan, names in (("resident", {"unet/stem", "unet/full"}), ("sequential", {"unet"}), ("streamed", {"unet"})):
        with load(sd1_bundle, "cpu", plan, threads=1) as pipeline:
            events = pipeline.steps(Request(PROMPT, seed=5, width=16, height=16, steps=2))
            next(events)
            assert {name for name, *_ in pipeline.components.pool.open if name.startswith("unet")} == names


def test_on_another_device_exact_images_use_the_whole_graph(sd1_bundle: Path) -> None:
    with load(sd1_bundle, "cpu", "resident", threads=1) as pipeline:
        expected = generated(pipeline)
        pipeline.components.provider = replace(pipeline.components.provider, device="cpu")  # ORT's name of a memory
        pipeline.close()
        found = generated(pipeline)
        assert {name for name, *_ in pipeline.components.pool.open if name.startswith("unet")} == {"unet"}
    assert np.abs(found.astype(int) - expected).max() <= 1  # prompt and negative as one batch


def test_measurements_count_a_prefix_as_the_beginning_of_its_call(sd1_bundle: Path) -> None:
    with load(sd1_bundle, "cpu", "resident", threads=1) as opened:
        pipeline, recorder = recorded(opened)
        recorder.exchanges = []
        generated(pipeline)
        calls = [call for call in recorder.calls if call.component == "unet"]
        assert len(calls) == 12
        assert all(earlier.end <= later.start for earlier, later in pairwise(calls))
        exchanged = [one for one in recorder.exchanges if one.component.startswith("unet")]
        assert {one.component for one in exchanged} == {"unet"}
        for one in exchanged[:3]:
            np.testing.assert_array_equal(opened.components.run("unet", one.feeds)["out_sample"], one.outputs["out_sample"])


def test_the_shipped_bundle_has_a_shared_prefix_and_verifies(sd1_bundle: Path) -> None:
    for bundle in (DEMO, sd1_bundle):
        assert unet_of(bundle).graphs.keys() == {"stem", "full", "shallow"}
        assert (bundle / "unet" / save.GRAPH).is_file()
    assert not verify(open_bundle(DEMO))
