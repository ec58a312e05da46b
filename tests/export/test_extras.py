"""The safety checker's vision tower and tiny decoders, judged by diffusers and transformers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file

from diffusette.export import runtime_bridge
from diffusette.export.graphs import edit, parity, save
from diffusette.export.sources import diffusers_folder, locate, tiny_autoencoder
from diffusette.export.targets import TARGETS
from diffusette.export.tracing import build, torch_reference, trace
from diffusette.models.errors import BundleError, RequestError
from tests.support import tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SD1 with a safety checker."""
    made = tiny_models.save(tmp_path_factory.mktemp("source") / "checked", "sd1")
    tiny_models.save_safety_checker(made)
    return made


@pytest.fixture(scope="module")
def taesd(tmp_path_factory):
    """(the tiny autoencoder, its diffusers folder)."""
    path = tmp_path_factory.mktemp("tiny") / "taesd"
    return tiny_models.save_tiny_vae(path), path


def session(opened, name, work):
    """The component as it is exported for the CPU, in ONNX Runtime."""
    model = edit.apply(trace.trace(build.build(opened, name)), TARGETS["cpu"])
    save.save(model, work)
    return runtime_bridge.open_graph(work / save.GRAPH)


def test_the_vision_tower_embeds_a_picture_as_diffusers_safety_checker_does_for_every_target(folder, tmp_path):
    judge = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker").eval()
    pixels = np.random.default_rng(0).standard_normal((3, 3, 8, 8), np.float32)
    with torch.no_grad():
        expected = judge.visual_projection(judge.vision_model(torch.from_numpy(pixels))[1])
    traced = trace.trace(build.build(diffusers_folder.open_folder(folder), "safety_checker"))
    for target, passes in TARGETS.items():
        save.save(edit.apply(traced.clone(), passes), tmp_path / target)
        got = runtime_bridge.open_graph(tmp_path / target / save.GRAPH).run({"clip_input": pixels})
        assert list(got) == ["image_embeds"]
        np.testing.assert_allclose(got["image_embeds"], expected.numpy(), atol=1e-5)


def test_a_checker_saved_by_transformers_4_has_the_same_weights(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "old")
    path = copy / "safety_checker/model.safetensors"
    state = load_file(path)
    level = "vision_model.vision_model."
    old = {key if key.startswith(level) else key.replace("vision_model.", level): value for key, value in state.items()}
    new = {key.replace(level, "vision_model."): value for key, value in state.items()}
    found = []
    for names in (old, new):
        save_file(names, path)
        component = build.build(diffusers_folder.open_folder(copy), "safety_checker")
        found.append({name: component.weights.read(name).sum() for name in component.weights.shapes})
    assert set(old) != set(new)
    assert found[0] == found[1]


def test_a_checker_that_is_named_but_not_there_is_said_and_left_out(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "safety_checker")
    opened = diffusers_folder.open_folder(copy)
    assert opened.components == opened.family.components
    assert "names a safety checker, but it is not there" in opened.notes[0]


def test_concepts_that_do_not_belong_together_are_refused(folder, tmp_path):
    from diffusette.export.packaging import safety_concepts  # used here alone

    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "safety_checker/model.safetensors"
    state = load_file(path)
    state["concept_embeds_weights"] = state["concept_embeds_weights"][:-1].clone()
    save_file(state, path)
    with pytest.raises(BundleError, match=r"concept_embeds of shape \(17, 6\) and concept_embeds_weights of shape \(16,\)"):
        safety_concepts.write(diffusers_folder.open_folder(copy), tmp_path / "out", 8)


def test_a_tiny_decoder_takes_the_latents_of_the_large_one_and_draws_what_diffusers_draws(folder, taesd, tmp_path):
    model, path = taesd
    latents = np.random.default_rng(1).standard_normal((2, 4, 5, 7), np.float32)  # as the U-Net has them
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(latents) / model.config.scaling_factor).sample.numpy()
    opened = locate.open_source(locate.Origin(folder, tiny_vae=path))
    got = session(opened, "tiny_decoder", tmp_path).run({"latent_sample": latents / np.float32(0.18215)})["sample"]
    assert got.shape == (2, 3, 10, 14)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_original_names_and_a_file_without_config_mean_the_same_decoder(folder, taesd, tmp_path):
    model, path = taesd
    state = load_file(path / "diffusion_pytorch_model.safetensors")
    inside = "decoder.layers."
    old = {}
    for name, value in state.items():
        if name.startswith(inside):
            place, _, rest = name.removeprefix(inside).partition(".")
            old[f"{int(place) + 1}.{rest}"] = value
    save_file(old, tmp_path / "taesd_decoder.safetensors")
    opened = diffusers_folder.open_folder(folder)
    whole = build.build(tiny_autoencoder.add(opened, path), "tiny_decoder")
    for file in (tmp_path / "taesd_decoder.safetensors", path / "diffusion_pytorch_model.safetensors"):
        component = build.build(tiny_autoencoder.add(opened, file), "tiny_decoder")
        assert component.config["num_decoder_blocks"] == list(model.config.num_decoder_blocks)
        assert component.weights.shapes == whole.weights.shapes
        for name in whole.weights.shapes:
            np.testing.assert_array_equal(component.weights.read(name), whole.weights.read(name))


def test_the_real_taesd_architecture_agrees_with_diffusers(tmp_path):
    """1.2 million weights, factor 8, behind an autoencoder of factor 8."""
    torch.manual_seed(0)
    model = AutoencoderTiny().eval()
    model.save_pretrained(tmp_path / "taesd")
    folder = tiny_models.save(tmp_path / "model", "sd1")
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"block_out_channels": [8, 8, 16, 16]}))
    opened = tiny_autoencoder.add(diffusers_folder.open_folder(folder), tmp_path / "taesd")
    latents = np.random.default_rng(2).standard_normal((1, 4, 9, 7), np.float32)
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(latents)).sample.numpy()
    got = session(opened, "tiny_decoder", tmp_path).run({"latent_sample": latents / np.float32(0.18215)})["sample"]
    assert got.shape == (1, 3, 72, 56)
    assert parity.snr(expected, got) > parity.BARS["fp32"]


def test_a_tiny_autoencoder_for_other_latents_is_refused(folder, tmp_path):
    tiny_models.save_tiny_vae(tmp_path / "other", latent_channels=16)
    with pytest.raises(RequestError, match=r"latents of 16 channels and 1/2 size, but .* has 4 channels and 1/2 size"):
        tiny_autoencoder.add(diffusers_folder.open_folder(folder), tmp_path / "other")


def test_what_is_no_tiny_autoencoder_is_refused(folder, tmp_path):
    opened = diffusers_folder.open_folder(folder)
    with pytest.raises(BundleError, match="a 'AutoencoderKL', expected an AutoencoderTiny"):
        tiny_autoencoder.add(opened, folder / "vae")
    with pytest.raises(BundleError, match="no decoder of a tiny autoencoder"):
        tiny_autoencoder.add(opened, folder / "vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(RequestError, match="no such file or folder"):
        tiny_autoencoder.add(opened, tmp_path / "nothing")
    save_file({"1.weight": torch.zeros(4, 4, 3, 3), "3.conv.0.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "cut.safetensors")
    with pytest.raises(BundleError, match="layers of no known tiny autoencoder"):
        tiny_autoencoder.add(opened, tmp_path / "cut.safetensors")


def test_a_safety_checker_read_layer_by_layer_gives_what_it_gives_as_a_whole(folder):
    found = []
    for loading in (torch_reference.loaded, torch_reference.by_layer):
        component = build.build(diffusers_folder.open_folder(folder), "safety_checker")
        feeds = torch_reference.cases(component)[1]
        with loading(component):
            found.append(torch_reference.run(component, feeds)["image_embeds"])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
