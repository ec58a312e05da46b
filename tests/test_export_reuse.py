"""Graphs for less work: they agree with the model they were cut from, and with torch where they leave something out."""

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

from diffusette.export import reuse, write
from diffusette.export import stem as export_stem
from diffusette.export.calibrate import open_graph
from diffusette.models import manifest as manifests
from diffusette.models import onnx_file
from diffusette.models.bundle import DEMO, open_bundle, verify
from diffusette.models.errors import BundleError
from diffusette.runtime import stem
from tests import small_graphs


def opened(bundle: Path, name: str) -> Any:
    """Graph `name` of the U-Net, with its stem where there is one."""
    graph = open_graph(bundle / f"unet/{name}.onnx")
    path = bundle / "unet/stem.onnx"
    return stem.Stemmed(open_graph(path), graph) if name == "full" and path.exists() else graph


def feeds_of(bundle: Path, side: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = {"batch_size": 2, "height": side, "width": side + 2, "sequence_length": 7}
    found: dict[str, np.ndarray] = {}
    for name, tensor in manifests.read(bundle).components["unet"].inputs.items():
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        found[name] = np.full(shape, 300, tensor.dtype) if name == "timestep" else rng.standard_normal(shape).astype(tensor.dtype)
    return found


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_shallow_graph_on_the_full_ones_features_gives_what_the_model_gives(
    bundle_of: Callable[[str], tuple[Path, Path]], family: str
) -> None:
    bundle = bundle_of(family)[1]
    feeds, stride = feeds_of(bundle), {"token_stride": np.ones(2, np.int64)}
    expected = open_graph(bundle / "unet/model.onnx").run(feeds)["out_sample"]
    full = opened(bundle, "full").run(feeds | stride)
    np.testing.assert_array_equal(full["out_sample"], expected)
    shallow, given = open_graph(bundle / "unet/shallow.onnx"), feeds | stride | {"deep_features": full["deep_features"]}
    again = shallow.run({name: given[name] for name in shallow.inputs})
    np.testing.assert_allclose(again["out_sample"], expected, rtol=1e-5, atol=1e-5)


def test_the_shallow_graph_has_nothing_of_what_lies_below_the_cut(sd1_bundle: Path) -> None:
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


def test_with_a_stride_keys_and_values_come_from_every_second_pixel_as_torch_has_it(
    bundle_of: Callable[[str], tuple[Path, Path]],
) -> None:
    source, bundle = bundle_of("sd1")
    feeds = feeds_of(bundle, 12)
    unet = UNet2DConditionModel.from_pretrained(source / "unet").eval()
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn1.processor") and not name.startswith("mid_block"):
            processors[name] = EverySecond(6, 7)  # the attention level has half of each side
    unet.set_attn_processor(processors)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
        expected = unet(tensors["sample"], tensors["timestep"], tensors["encoder_hidden_states"]).sample.numpy()
    found = opened(bundle, "full").run(feeds | {"token_stride": np.array([2, 2])})
    np.testing.assert_allclose(found["out_sample"], expected, rtol=1e-3, atol=1e-4)
    assert manifests.read(bundle).components["unet"].graphs["full"].grid == 2


def test_graphs_have_no_input_that_they_do_not_use_for_openvino_takes_others_for_it(sd1_bundle: Path) -> None:
    for folder in (sd1_bundle, DEMO):
        graphs = manifests.read(folder).components["unet"].graphs
        for name, graph in graphs.items():
            proto = onnx.load(folder / f"unet/{name}.onnx", load_external_data=False).graph
            used = {one for node in proto.node for one in node.input}
            assert {one.name for one in proto.input} == graph.inputs.keys() <= used
    assert graphs["shallow"].inputs.keys() == {"sample", "timestep", "deep_features"}  # the demo model's outermost block reads no text


def test_the_graphs_share_the_weight_file_and_stand_in_the_manifest(sd1_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    shutil.copytree(sd1_bundle / "unet", folder)
    for name in ("stem.onnx", "full.onnx", "shallow.onnx"):
        (folder / name).unlink()
    proto = onnx.load(folder / "model.onnx")
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location=write.DATA, size_threshold=1024)
    size = (folder / write.DATA).stat().st_size
    made, notes = manifests.read(sd1_bundle).components["unet"], list[str]()
    for add in (reuse.add, export_stem.add):
        made, note = add(folder, made)
        notes.append(note)
    assert not any(notes)
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".json") == [
        "full.onnx",
        "model.onnx",
        write.DATA,
        "shallow.onnx",
        "stem.onnx",
    ]
    assert (folder / write.DATA).stat().st_size == size
    assert all((folder / name).stat().st_size < size for name in ("stem.onnx", "full.onnx", "shallow.onnx"))
    assert made.graphs == manifests.read(sd1_bundle).components["unet"].graphs
    for name, graph in made.graphs.items():  # for providers that need fixed shapes, what is free in the file has to be free here
        declared = onnx_file.read(folder / f"{name}.onnx")
        assert {key: tensor.shape for key, tensor in declared.inputs.items()} == {key: one.shape for key, one in graph.inputs.items()}
    assert made.graphs["shallow"].inputs["deep_features"].shape[1] == 8
    assert not verify(open_bundle(sd1_bundle))


def test_graphs_that_cannot_be_cut_are_left_alone_and_it_is_said(sd1_bundle: Path, tmp_path: Path) -> None:
    small_graphs.convolution(tmp_path / "unet" / "model.onnx")
    component = manifests.read(sd1_bundle).components["unet"]
    made, note = reuse.add(tmp_path / "unet", component)
    assert made is component
    assert "no place to cut" in note
    assert [path.name for path in (tmp_path / "unet").iterdir()] == ["model.onnx"]


def test_a_further_graph_is_looked_at_as_closely_as_the_first(sd1_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(sd1_bundle, tmp_path / "bundle")
    path = tmp_path / "bundle/unet/shallow.onnx"
    proto = onnx.load(path)
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "EPContext", "com.microsoft"
    path.write_bytes(proto.SerializeToString())
    file = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    small_graphs.edit_manifest(tmp_path / "bundle", "files", "unet/shallow.onnx", value=file)
    with pytest.raises(BundleError, match=r"unet/shallow\.onnx: operator 'EPContext'"):
        open_bundle(tmp_path / "bundle")


def test_manifests_without_further_graphs_are_read(sd1_bundle: Path) -> None:
    old = json.loads((sd1_bundle / manifests.FILE_NAME).read_bytes())
    for component in old["components"].values():
        del component["graphs"]
    assert manifests.decode(json.dumps(old).encode()).components["unet"].graphs == {}
