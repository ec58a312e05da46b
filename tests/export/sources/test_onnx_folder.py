"""export/sources/onnx_folder.py: a folder of ONNX graphs becomes a bundle, compared with its own graphs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from diffusette.export.export import Options, export_model
from diffusette.export.graphs import parity, save
from diffusette.export.sources import diffusers_folder, locate, onnx_folder
from diffusette.export.tracing.merge_lora import Lora
from diffusette.models import manifest
from diffusette.models.bundle import open_bundle, verify
from diffusette.models.errors import BundleError, RequestError
from diffusette.runtime import pipeline
from tests.support import optimum_folder, small_graphs, tiny_models


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("weights") / "model", "sd1")


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    """The same model as graphs."""
    return optimum_folder.save(tmp_path_factory.mktemp("graphs") / "model", weights)


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    return export_model(folder, tmp_path_factory.mktemp("bundles") / "bundle", Options(target="portable", precision="fp32"))


def pixels(folder, **fields):
    with pipeline.load(folder, provider="cpu") as drawing:
        return np.asarray(drawing.generate("a red apple", seed=3, steps=4, **fields).images[0], np.float32)


def test_a_folder_of_graphs_becomes_a_whole_bundle_that_says_what_it_was_compared_with(exported, folder):
    bundle = open_bundle(exported.folder)
    assert verify(bundle) == []
    made = bundle.manifest
    assert (made.family, made.target, made.source.reference, made.source.licence) == ("sd1", "portable", "graphs", "apache-2.0")
    assert set(made.components) == {"text_encoder", "vae_encoder", "vae_decoder", "unet"}
    for component in made.components.values():
        assert component.precision == "fp32"
        assert component.parity_db >= parity.BARS["fp32"]
    assert made.latent == manifest.Latent(channels=4, downscale=2, scaling=0.18215)
    assert made.components["unet"].inputs["sample"].shape == ("batch_size", 4, "height", "width")
    assert made.components["unet"].inputs["timestep"] == manifest.Tensor("int64", ("batch_size",))
    assert {"tokenizer/vocab.json", "README.md"} <= made.files.keys()


def test_the_bundle_draws_what_the_folder_draws(exported, folder):
    np.testing.assert_array_equal(pixels(exported.folder, width=16, height=16), pixels(folder, width=16, height=16))


def test_numbered_weights_get_the_names_that_they_have_in_the_state_dict(exported, weights):
    names = set(save.load(exported.folder / "unet").graph.initializers)
    assert not [name for name in names if "::MatMul" in name]
    for key, shape in diffusers_folder.open_folder(weights).weights("unet").shapes.items():
        if key.endswith(".weight") and len(shape) > 1:
            assert key in names, key


def test_eight_bit_works_on_such_graphs_too(folder, tmp_path):
    precision = {"unet": "int8"}
    done = export_model(folder, tmp_path / "bundle", Options(target="cpu", precision=precision, prompts=("a red apple",)))
    unet = done.manifest.components["unet"]
    assert (unet.precision, done.manifest.source.reference) == ("int8", "graphs")
    assert unet.parity_db >= parity.BARS["int8"]
    kinds = {row.layer: row.kind for row in done.layers["unet"]}
    assert kinds["mid_block.resnets.0.conv1"] == "int8"
    assert kinds["conv_in"] == "float"
    assert kinds["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"] != "int8"  # the recipe knows its name
    assert np.abs(pixels(done.folder) - pixels(folder)).mean() < 16


def test_a_target_that_needs_weights_is_refused_and_says_what_to_give(folder, tmp_path):
    with pytest.raises(
        RequestError, match=r"--target cuda: .* has graphs only, expected --target portable or cpu, or the diffusers folder"
    ):
        export_model(folder, tmp_path / "out", Options(target="cuda", precision="fp32"))
    assert not (tmp_path / "out").exists()


def test_a_lora_cannot_be_merged_into_graphs_and_that_is_said(folder, tmp_path):
    (tmp_path / "style.safetensors").write_bytes(b"")
    with pytest.raises(RequestError, match=r"no weights to merge style\.safetensors into; use it when generating"):
        export_model(folder, tmp_path / "out", Options(target="portable", loras=(Lora(tmp_path / "style.safetensors"),)))


def test_a_bundle_is_no_source(exported):
    with pytest.raises(RequestError, match="is a bundle already"):
        locate.open_source(locate.Origin(exported.folder))


def test_graphs_in_half_precision_are_refused_with_what_to_do(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "half")
    model = onnx.load(copy / "vae_decoder/model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    onnx.save(model, copy / "vae_decoder/model.onnx")
    with pytest.raises(BundleError, match=r"vae_decoder is fp16 already, expected float32 graphs"):
        onnx_folder.open_graphs(copy)


def test_a_missing_text_encoder_and_hostile_data_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "text_encoder")
    with pytest.raises(BundleError, match=r"text_encoder/model\.onnx is missing"):
        onnx_folder.open_graphs(copy)
    copy = shutil.copytree(folder, tmp_path / "other")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"unet": ["evil", "RunsCode"]}))
    with pytest.raises(BundleError, match="unet is a 'RunsCode'"):
        onnx_folder.open_graphs(copy)


def test_the_older_layout_of_diffusers_is_read_too(tmp_path):
    opened = locate.open_source(locate.Origin(small_graphs.plain_folder(tmp_path / "old")))
    assert opened.components == ("text_encoder", "vae_decoder", "unet")
    found = onnx_folder.export(opened, "unet", tmp_path / "out", "portable")
    assert found.inputs["encoder_hidden_states"].shape == ("batch_size", "sequence_length", 768)
    assert found.parity_db == parity.PERFECT
    assert not onnx_folder.is_folder(tmp_path)
