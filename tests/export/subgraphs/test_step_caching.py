"""Graphs for step caching and token strides: they agree with the model, and with torch where they skip work."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from diffusette.export.graphs import save
from diffusette.export.runtime_bridge import open_graph
from diffusette.export.subgraphs import shared_prefix as export_prefix
from diffusette.export.subgraphs import step_caching
from diffusette.models import manifest as manifests
from diffusette.models.bundle import DEMO, open_bundle, read_manifest, verify
from diffusette.models.errors import BundleError
from diffusette.models.formats import onnx_reader
from diffusette.runtime.sampling import shared_prefix
from tests.support import small_graphs


def opened(bundle: Path, name: str) -> Any:
    """Graph `name` of the U-Net, after its shared prefix if it has one."""
    graph = open_graph(bundle / f"unet/{name}.onnx")
    prefix = bundle / "unet/stem.onnx"
    return shared_prefix.SharedPrefixUnet(open_graph(prefix), graph) if name == "full" and prefix.exists() else graph


def feeds_of(bundle: Path, side: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = {"batch_size": 2, "height": side, "width": side + 2, "sequence_length": 7}
    feeds: dict[str, np.ndarray] = {}
    for name, tensor in read_manifest(bundle).components["unet"].inputs.items():
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        feeds[name] = np.full(shape, 300, tensor.dtype) if name == "timestep" else rng.standard_normal(shape).astype(tensor.dtype)
    return feeds


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_shallow_graph_returns_the_same_output_as_the_model_with_the_deep_features_of_the_full_graph(
    bundle_of: Callable[[str], tuple[Path, Path]], family: str
) -> None:
    bundle = bundle_of(family)[1]
    feeds, stride = feeds_of(bundle), {"token_stride": np.ones(2, np.int64)}
    expected = open_graph(bundle / "unet/model.onnx").run(feeds)["out_sample"]
    full = opened(bundle, "full").run(feeds | stride)
    np.testing.assert_array_equal(full["out_sample"], expected)
    shallow, given = open_graph(bundle / "unet/shallow.onnx"), feeds | stride | {"deep_features": full["deep_features"]}
    found = shallow.run({name: given[name] for name in shallow.inputs})
    np.testing.assert_allclose(found["out_sample"], expected, rtol=1e-5, atol=1e-5)


def test_the_shallow_graph_has_no_weights_of_blocks_below_the_cut(sd1_bundle: Path) -> None:
    names = {value.name for value in onnx.load(sd1_bundle / "unet/shallow.onnx").graph.initializer}
    blocks = {".".join(name.split(".")[:4]) for name in names if name.startswith(("down_blocks", "mid_block", "up_blocks"))}
    assert blocks == {"up_blocks.1.resnets.1"}
    assert {"conv_in.weight", "conv_out.weight"} <= names


class EverySecond(AttnProcessor):
    """Self-attention whose keys and values come from every second pixel along each side."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = height, width

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if encoder_hidden_states is None:
            batch, _, channels = hidden_states.shape
            encoder_hidden_states = hidden_states.view(batch, *self.size, channels)[:, ::2, ::2].reshape(batch, -1, channels)
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


def test_with_a_stride_of_two_keys_and_values_come_from_every_second_pixel_like_in_torch(
    bundle_of: Callable[[str], tuple[Path, Path]],
) -> None:
    source, bundle = bundle_of("sd1")
    feeds = feeds_of(bundle, 12)
    unet = UNet2DConditionModel.from_pretrained(source / "unet").eval()
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn1.processor") and not name.startswith("mid_block"):
            processors[name] = EverySecond(6, 7)  # attention runs at half the height and width
    unet.set_attn_processor(processors)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
        expected = unet(tensors["sample"], tensors["timestep"], tensors["encoder_hidden_states"]).sample.numpy()
    found = opened(bundle, "full").run(feeds | {"token_stride": np.array([2, 2])})
    np.testing.assert_allclose(found["out_sample"], expected, rtol=1e-3, atol=1e-4)
    assert read_manifest(bundle).components["unet"].graphs["full"].grid == 2


def test_graphs_have_no_unused_inputs_because_openvino_mixes_them_up(sd1_bundle: Path) -> None:
    for folder in (sd1_bundle, DEMO):
        graphs = read_manifest(folder).components["unet"].graphs
        for name, graph in graphs.items():
            proto = onnx.load(folder / f"unet/{name}.onnx", load_external_data=False).graph
            used = {name for node in proto.node for name in node.input}
            assert {value.name for value in proto.input} == graph.inputs.keys() <= used
    assert graphs["shallow"].inputs.keys() == {
        "sample",
        "timestep",
        "deep_features",
    }  # no cross-attention above the cut


def test_the_graphs_share_the_weight_file_and_are_in_the_manifest(sd1_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    shutil.copytree(sd1_bundle / "unet", folder)
    for name in ("stem.onnx", "full.onnx", "shallow.onnx"):
        (folder / name).unlink()
    proto = onnx.load(folder / "model.onnx")
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location=save.DATA, size_threshold=1024)
    size = (folder / save.DATA).stat().st_size
    component, notes = read_manifest(sd1_bundle).components["unet"], list[str]()
    for add in (step_caching.add, export_prefix.add):
        component, note = add(folder, component)
        notes.append(note)
    assert not any(notes)
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".json") == [
        "full.onnx",
        "model.onnx",
        save.DATA,
        "shallow.onnx",
        "stem.onnx",
    ]
    assert (folder / save.DATA).stat().st_size == size
    assert all((folder / name).stat().st_size < size for name in ("stem.onnx", "full.onnx", "shallow.onnx"))
    assert component.graphs == read_manifest(sd1_bundle).components["unet"].graphs
    for name, graph in component.graphs.items():  # providers that need fixed shapes read the symbolic dimensions of the file
        declared = onnx_reader.read(folder / f"{name}.onnx")
        assert {key: tensor.shape for key, tensor in declared.inputs.items()} == {key: tensor.shape for key, tensor in graph.inputs.items()}
    assert component.graphs["shallow"].inputs["deep_features"].shape[1] == 8
    assert not verify(open_bundle(sd1_bundle))


def test_a_graph_that_cannot_be_cut_does_not_change_and_a_note_gives_the_reason(sd1_bundle: Path, tmp_path: Path) -> None:
    small_graphs.convolution(tmp_path / "unet" / "model.onnx")
    component = read_manifest(sd1_bundle).components["unet"]
    made, note = step_caching.add(tmp_path / "unet", component)
    assert made is component
    assert "no skip connection to cut at" in note
    assert [path.name for path in (tmp_path / "unet").iterdir()] == ["model.onnx"]


def test_the_operators_of_additional_graphs_are_checked_when_a_bundle_is_opened(sd1_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(sd1_bundle, tmp_path / "bundle")
    path = tmp_path / "bundle/unet/shallow.onnx"
    proto = onnx.load(path)
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "EPContext", "com.microsoft"
    path.write_bytes(proto.SerializeToString())
    file = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    small_graphs.edit_manifest(tmp_path / "bundle", "files", "unet/shallow.onnx", value=file)
    with pytest.raises(BundleError, match=r"unet/shallow\.onnx: operator 'EPContext'"):
        open_bundle(tmp_path / "bundle")


def test_manifests_without_additional_graphs_are_read(sd1_bundle: Path) -> None:
    old = json.loads((sd1_bundle / manifests.FILE_NAME).read_bytes())
    for component in old["components"].values():
        del component["graphs"]
    assert manifests.decode(json.dumps(old).encode()).components["unet"].graphs == {}
