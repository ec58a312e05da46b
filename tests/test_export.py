"""export.py end to end on a tiny random model: a diffusers folder goes in, a bundle that the runtime draws from comes out.

One export, killed once on the way, serves all tests here: tracing a U-Net takes many seconds however small it is.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusette.export import calibrate, components, parity, reference, source, write
from diffusette.export.export import Options, export_folder, precision_of
from diffusette.models import manifest, weights
from diffusette.models.bundle import open_bundle, verify
from diffusette.models.errors import BundleError, NumericalError, RequestError
from diffusette.runtime import pipeline
from tests import tiny_models

PRECISION = {"unet": "int8", "text_encoder": "int8", "safety_checker": "int8", "tiny_decoder": "int8"}
CHILD = """
import sys
from pathlib import Path
from diffusette.export.export import Options, export_folder
tiny_vae = Path(sys.argv[1]).parent / "taesd"
export_folder(Path(sys.argv[1]), Path(sys.argv[2]), Options(precision={precision}, prompts=("a red apple",), tiny_vae=tiny_vae),
              lambda what, done: print(what, flush=True))
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny SD1-like diffusers folder with 6 latent channels, a safety checker and a tokenizer as transformers 5 saves it."""
    made = tiny_models.save(tmp_path_factory.mktemp("source") / "tiny", "sd1", latent_channels=6, fast_tokenizer=True)
    tiny_models.save_safety_checker(made)
    tiny_models.save_tiny_vae(made.parent / "taesd", latent_channels=6)
    (made / "diffusette.json").write_text(json.dumps({"width": 24, "height": 16, "steps": 3, "sampler": "euler", "schedule": "model"}))
    return made


@pytest.fixture(scope="session")
def exported(folder, tmp_path_factory):
    """(report, what the second run did, what stood at the destination after the first was killed)."""
    destination = tmp_path_factory.mktemp("bundles") / "bundle"
    code = CHILD.format(precision=PRECISION)
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(destination)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("unet"):  # the others are finished
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    left = sorted(path.name for path in destination.parent.iterdir())
    finished = {path.name: path.stat().st_mtime_ns for path in (destination.parent / ".bundle.partial").glob("*.done")}
    second: list[str] = []
    options = Options(precision=PRECISION, prompts=("a red apple",), tiny_vae=folder.parent / "taesd")
    report = export_folder(folder, destination, options, lambda what, _: second.append(what))
    return report, left, finished


def test_an_export_that_was_killed_left_no_bundle_and_went_on_from_its_finished_stages(exported):
    report, left, finished = exported
    assert left == [".bundle.partial"]
    assert sorted(finished) == ["text_encoder.done", "vae_decoder.done", "vae_encoder.done"]
    assert [path.name for path in report.folder.parent.iterdir()] == ["bundle"]


def test_the_bundle_is_whole_and_every_file_has_its_hash(exported):
    report, _, _ = exported
    bundle = open_bundle(report.folder)
    assert verify(bundle) == []
    files = {path.relative_to(report.folder).as_posix() for path in report.folder.rglob("*") if path.is_file()}
    assert files == set(bundle.manifest.files) | {"manifest.json"}
    assert {"LICENSE", "README.md", "tokenizer/vocab.json", "tokenizer/merges.txt"} <= files


def test_the_manifest_says_what_the_model_is(exported):
    made = manifest.read(exported[0].folder)
    assert (made.family, made.target) == ("sd1", "cpu")
    assert made.latent == manifest.Latent(channels=6, downscale=2, scaling=0.18215)
    assert made.defaults == manifest.Defaults(width=24, height=16, steps=3, guidance=7.5, sampler="euler", schedule="model")
    assert made.tokenizers == {"tokenizer": manifest.Tokenizer("tokenizer", tiny_models.TOKENS, made.tokenizers["tokenizer"].pad)}
    assert made.source == manifest.Source("tiny", None, "apache-2.0")
    assert made.components["unet"].inputs["sample"] == manifest.Tensor("float32", ("batch_size", 6, "height", "width"))
    assert list(made.components["text_encoder"].outputs) == [
        "last_hidden_state",
        "normed_hidden_states.1",
        "normed_hidden_states.2",
        "pooler_output",
    ]


def test_every_component_agrees_with_torch_as_well_as_its_precision_promises(exported):
    found = {name: (one.precision, one.parity_db) for name, one in exported[0].manifest.components.items()}
    assert {name: precision for name, (precision, _) in found.items()} == {
        "text_encoder": "fp16",  # too small for 8-bit weights to pay
        "vae_encoder": "fp32",
        "vae_decoder": "fp32",
        "unet": "int8",
        "safety_checker": "int8",
        "tiny_decoder": "fp16",
    }
    for name, (precision, db) in found.items():
        assert db >= parity.BARS[precision], name


def test_the_safety_checker_comes_with_its_concepts_and_how_a_picture_becomes_its_input(exported, folder):
    report, _, _ = exported
    assert report.manifest.components["safety_checker"].inputs["clip_input"].shape == ("batch_size", 3, 8, 8)
    assert "safety_checker/concepts.safetensors" in report.manifest.files
    concepts = weights.open_weights(report.folder / "safety_checker/concepts.safetensors")
    judge = weights.open_weights(folder / "safety_checker/model.safetensors")
    assert sorted(concepts) == ["concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights"]
    for name in concepts:
        np.testing.assert_array_equal(concepts[name], judge[name])
    said = {name: json.loads(value) for name, value in concepts.metadata.items()}
    assert said == {"size": 8, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def test_the_report_names_each_layer_of_a_quantized_component(exported):
    rows = {row.layer: row for row in exported[0].layers["unet"]}
    assert rows["conv_in"].kind == "float"
    assert rows["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"].kind in {"weights", "float"}
    assert rows["mid_block.resnets.0.conv1"].kind == "int8"
    assert rows["mid_block.resnets.0.conv1"].snr > 25


def test_weights_keep_the_names_of_the_state_dict(exported, folder):
    names = set(write.load(exported[0].folder / "unet").graph.initializers)
    for key in source.open_folder(folder).weights("unet").shapes:
        if key.endswith(".weight"):
            assert names & {key, f"{key}_quantized"}, key


def test_the_runtime_draws_from_it_the_same_picture_twice(exported):
    with pipeline.load(exported[0].folder, provider="cpu") as drawing:
        one, two = (drawing.generate("a red apple", seed=5).images[0] for _ in range(2))
    assert one.size == (24, 16)
    np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_the_exported_vae_agrees_with_diffusers_on_sizes_that_are_no_power_of_two(exported, folder):
    component = components.build(source.open_folder(folder), "vae_decoder")
    feeds = reference.examples(component, (7, 11), 2, 0, 0.0, seed=3)
    with reference.loaded(component):
        expected = reference.run(component, feeds)["sample"]
    got = calibrate.open_graph(exported[0].folder / "vae_decoder/model.onnx").run(feeds)["sample"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_weights_read_layer_by_layer_give_what_weights_read_at_once_give(folder):
    opened = source.open_folder(folder)
    results = []
    for by_layer in (False, True):
        component = components.build(opened, "unet")
        feeds = reference.examples(component, (8, 8), 1, 5, 300.0, seed=3)
        with reference.loaded(component, by_layer=by_layer):
            results.append(reference.run(component, feeds)["out_sample"])
    np.testing.assert_array_equal(*results)


def test_the_same_source_gives_the_same_bytes(folder, tmp_path, exported):
    opened = source.open_folder(folder)
    from diffusette.export.floats import export_float  # used here alone

    export_float(opened, "vae_encoder", tmp_path / "again", "cpu")
    assert write.fingerprint(tmp_path / "again/model.onnx") == exported[0].manifest.files["vae_encoder/model.onnx"]


def test_an_existing_destination_is_refused_before_anything_is_done(folder, exported):
    with pytest.raises(RequestError, match="--force"):
        export_folder(folder, exported[0].folder)


def test_a_component_below_the_bar_is_refused_with_the_layers_that_cost_most():
    with pytest.raises(NumericalError, match=r"unet in int8: 20\.0 dB .* at least 24 dB: not published.*conv1, conv2"):
        parity.require("unet", "int8", parity.Parity(20.0, {"out_sample": 20.0}), 24.0, ["conv1", "conv2"])


def test_signal_to_noise_is_ten_times_the_logarithm_of_powers_and_nan_is_the_worst():
    assert parity.snr(np.ones(4), np.ones(4)) == parity.PERFECT
    assert parity.snr(np.ones(4), np.full(4, 0.9)) == pytest.approx(20.0)
    assert parity.snr(np.ones(2), np.array([1.0, np.nan])) == -parity.PERFECT
    assert parity.snr(np.ones(2), np.ones(3)) == -parity.PERFECT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(target="portable", precision="int8"), "in int8 for portable: expected fp32"),
        (Options(precision={"vae": "int8"}), "'vae': sd1 has text_encoder"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(folder, tmp_path, options, message):
    with pytest.raises(RequestError, match=message):
        export_folder(folder, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_precision_is_said_for_all_or_by_component():
    assert precision_of(None, "cpu") == "int8"
    assert precision_of(None, "directml") == "fp16"
    assert precision_of("fp32", "cpu") == "fp32"
    assert precision_of("unet=int8,vae_decoder=fp32", "cpu") == {"unet": "int8", "vae_decoder": "fp32"}
    with pytest.raises(RequestError, match="int3"):
        precision_of("int3", "cpu")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"model_index\.json: cannot be read"):
        export_folder(tmp_path, tmp_path / "out")
    assert not Path(tmp_path / "out").exists()
