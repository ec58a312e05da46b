"""export.py end to end on a tiny random model: a diffusers folder goes in, a bundle that the runtime generates from comes out.

One export, killed once on the way, serves all tests here: tracing a U-Net takes many seconds however small it is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from diffusette.export import export, runtime_bridge
from diffusette.export.export import Options, Report, export_model, precision_of
from diffusette.export.graphs import parity, save
from diffusette.export.sources import diffusers_folder
from diffusette.export.sources.locate import locate
from diffusette.export.tracing import build, torch_reference
from diffusette.models import manifest
from diffusette.models.bundle import open_bundle, read_manifest, verify
from diffusette.models.errors import BundleError, NumericalError, RequestError, ResourceError
from diffusette.models.formats import safetensors_file
from diffusette.runtime import pipeline
from tests.support import tiny_models

PRECISION = {"unet": "int8", "text_encoder": "int8", "safety_checker": "int8", "tiny_decoder": "int8"}
CHILD = """
import sys
from pathlib import Path
from diffusette.export.export import Options, export_model
tiny_vae = Path(sys.argv[1]).parent / "taesd"
export_model(Path(sys.argv[1]), Path(sys.argv[2]), Options(precision={precision}, prompts=("a red apple",), tiny_vae=tiny_vae),
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


def options(folder, **more):
    return Options(precision=PRECISION, prompts=("a red apple",), tiny_vae=folder.parent / "taesd", **more)


@dataclass(frozen=True)
class Killed:
    """An export that was killed twice, and what stood at its destination and in its workplace after each time."""

    report: Report
    left: list[list[str]]
    finished: list[dict[str, int]]
    """Names of finished stages, with the time of their record."""
    partial: Path
    """A copy of the workplace after the last time."""


def killed_at(word, folder, destination):
    """What stands beside the destination, and the finished stages, after an export was killed once it said `word`."""
    code = CHILD.format(precision=PRECISION)
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(destination)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith(word):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    left = sorted(path.name for path in destination.parent.iterdir())
    return left, {path.name: path.stat().st_mtime_ns for path in (destination.parent / ".bundle.partial").glob("*.done")}


@pytest.fixture(scope="session")
def exported(folder, tmp_path_factory):
    """An export that was killed while it traced and while it quantized, and then let go on."""
    destination, copy = tmp_path_factory.mktemp("bundles") / "bundle", tmp_path_factory.mktemp("copies") / "partial"
    found = [killed_at(word, folder, destination) for word in ("unet", "unet: int8")]
    shutil.copytree(destination.parent / ".bundle.partial", copy)
    report = export_model(folder, destination, options(folder))
    return Killed(report, [left for left, _ in found], [finished for _, finished in found], copy)


def test_an_export_that_was_killed_left_no_bundle_and_went_on_from_its_finished_stages(exported):
    assert exported.left == [[".bundle.partial"], [".bundle.partial"]]
    first, second = ({name: made for name, made in one.items() if ".note." not in name} for one in exported.finished)
    assert sorted(first) == ["text_encoder.done", "vae_decoder.done", "vae_encoder.done"]
    later = ["unet.done", "preview.done", "safety_checker.done", "tiny_decoder.done", "recorded.done"]
    later += [f"{name}.lowered.done" for name, precision in PRECISION.items() if precision != "fp32" and name != "unet"]
    assert sorted(second) == sorted([*first, *later])
    assert {name: second[name] for name in first} == first  # nothing was done again
    assert [path.name for path in exported.report.folder.parent.iterdir()] == ["bundle"]


def resumed(exported, folder, place, progress=lambda _what, _done: None, **more):
    """The export goes on at another place from where it was killed the last time."""
    shutil.copytree(exported.partial, place / ".bundle.partial")
    wanted = options(folder, **more)
    opened = export.open_source(locate(folder, None, wanted.tiny_vae, progress))
    (place / ".bundle.partial/key.json").write_text(export._key(opened, wanted))  # the float graphs are the same with another bar
    return export_model(folder, place / "bundle", wanted, progress)


def old_bundle(place):
    (place / "bundle").mkdir(parents=True)
    (place / "bundle/file").write_text("old")


def only_the_old_bundle(place, *others):
    left = sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))
    return left == sorted(["bundle", "bundle/file", *others]) and (place / "bundle/file").read_text() == "old"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small tmpfs")
@pytest.mark.parametrize("moment", ["unet: int8", "publishing"])
def test_a_disk_that_is_full_at_any_stage_leaves_the_old_bundle_and_nothing_else(exported, folder, tmp_path, moment):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")

    def fill(what, _done):
        if what == moment:
            with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    try:
        old_bundle(disk)
        with pytest.raises(ResourceError, match="disk is full; the partial files have been removed"):
            resumed(exported, folder, disk, fill, force=True)
        assert only_the_old_bundle(disk, "ballast")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk of 200 KB")
def test_too_little_disk_is_refused_before_anything_is_done(folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    told = []
    try:
        with pytest.raises(ResourceError, match=r"0 MiB are free, but this export needs \d+ MiB at its peak: free some space"):
            export_model(folder, disk / "bundle", Options(precision="fp32"), lambda what, _: told.append(what))
        assert not [path for path in disk.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert not told


def test_below_the_bar_nothing_is_published_and_the_layers_that_cost_most_are_named(exported, folder, tmp_path):
    old_bundle(tmp_path)
    with pytest.raises(NumericalError, match=r"unet in .*: not published; layers that cost the most quality: \w+\.") as caught:
        resumed(exported, folder, tmp_path, force=True, min_snr=190.0)
    assert "expected at least 190 dB" in str(caught.value)
    assert (tmp_path / "bundle/file").read_text() == "old"
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["file"]


def test_the_report_tells_each_layer_and_is_the_same_wherever_it_is_made(exported, folder, tmp_path):
    again = resumed(exported, folder, tmp_path)
    made = {name: (exported.report.folder / name).read_bytes() for name in ("report.json", "report.svg")}
    assert made == {name: (again.folder / name).read_bytes() for name in made}
    assert set(made) <= set(exported.report.manifest.files)
    facts = json.loads(made["report.json"])["components"]
    assert {name: one["precision"] for name, one in facts.items()} == {
        name: one.precision for name, one in exported.report.manifest.components.items()
    }
    for name, one in facts.items():
        graph = exported.report.folder / exported.report.manifest.components[name].graph
        assert one["bytes"] == sum(path.stat().st_size for path in graph.parent.glob("model.onnx*"))
    rows = {row.layer: row for row in exported.report.layers["unet"]}
    assert [layer["layer"] for layer in facts["unet"]["layers"]] == list(rows)
    assert sum(kind["layers"] for kind in facts["unet"]["kinds"].values()) == len(rows)
    assert sum(kind["bytes"] for kind in facts["unet"]["kinds"].values()) == sum(row.bytes for row in rows.values())
    drawn = ET.fromstring(made["report.svg"])
    dots = drawn.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(dots) == sum(row.effect is not None for rows in exported.report.layers.values() for row in rows)


ORPHAN = """
import os, sys, time
from pathlib import Path
from diffusette.export.float_graphs import _pool
def sleep(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)
if __name__ == "__main__":
    with _pool() as pool:
        pool.submit(sleep, sys.argv[1]).result()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_process_of_a_large_component_ends_with_an_export_that_is_killed(tmp_path):
    script, number = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(ORPHAN)
    process = subprocess.Popen([sys.executable, str(script), str(number)])
    while not (number.exists() and number.read_text()):
        time.sleep(0.05)
    process.kill()
    process.wait()
    for _ in range(100):
        if not alive(int(number.read_text())):
            return
        time.sleep(0.05)
    pytest.fail("the child lives on")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_bundle_is_whole_and_every_file_has_its_hash(exported):
    report = exported.report
    bundle = open_bundle(report.folder)
    assert verify(bundle) == []
    files = {path.relative_to(report.folder).as_posix() for path in report.folder.rglob("*") if path.is_file()}
    assert files == set(bundle.manifest.files) | {"manifest.json"}
    assert {"LICENSE", "README.md", "tokenizer/vocab.json", "tokenizer/merges.txt"} <= files


def test_the_manifest_says_what_the_model_is(exported):
    made = read_manifest(exported.report.folder)
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
    found = {name: (one.precision, one.parity_db) for name, one in exported.report.manifest.components.items()}
    assert {name: precision for name, (precision, _) in found.items()} == {
        "text_encoder": "fp16",  # too small for int8 weights to pay
        "vae_encoder": "fp32",
        "vae_decoder": "fp32",
        "unet": "int8",
        "safety_checker": "fp32",  # every layer of these two is too small for 16 bits to pay
        "tiny_decoder": "fp32",
    }
    for name, (precision, db) in found.items():
        assert db >= parity.BARS[precision], name
        stored = onnx.load(exported.report.folder / name / "model.onnx", load_external_data=False).graph.initializer
        kinds = {tensor.data_type for tensor in stored}
        assert (TensorProto.FLOAT16 in kinds) == (precision == "fp16") or precision == "int8", name
        assert bool(kinds & {TensorProto.INT8, TensorProto.UINT8}) == (precision == "int8"), name


def test_the_safety_checker_comes_with_its_concepts_and_how_a_picture_becomes_its_input(exported, folder):
    report = exported.report
    assert report.manifest.components["safety_checker"].inputs["clip_input"].shape == ("batch_size", 3, 8, 8)
    assert "safety_checker/concepts.safetensors" in report.manifest.files
    concepts = safetensors_file.open_weights(report.folder / "safety_checker/concepts.safetensors")
    judge = safetensors_file.open_weights(folder / "safety_checker/model.safetensors")
    assert sorted(concepts) == ["concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights"]
    for name in concepts:
        np.testing.assert_array_equal(concepts[name], judge[name])
    said = {name: json.loads(value) for name, value in concepts.metadata.items()}
    assert said == {"size": 8, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def test_the_report_names_each_layer_of_a_quantized_component(exported):
    rows = {row.layer: row for row in exported.report.layers["unet"]}
    assert rows["conv_in"].kind == "float"
    assert rows["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"].kind in {"weights", "float"}
    assert rows["mid_block.resnets.0.conv1"].kind == "int8"
    assert rows["mid_block.resnets.0.conv1"].snr > 25


def test_weights_keep_the_names_of_the_state_dict(exported, folder):
    names = set(save.load(exported.report.folder / "unet").graph.initializers)
    for key in diffusers_folder.open_folder(folder).weights("unet").shapes:
        if key.endswith(".weight"):
            assert names & {key, f"{key}_quantized"}, key


def test_the_runtime_draws_from_it_the_same_picture_twice(exported):
    with pipeline.load(exported.report.folder, provider="cpu") as drawing:
        one, two = (drawing.generate("a red apple", seed=5).images[0] for _ in range(2))
    assert one.size == (24, 16)
    np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_the_exported_vae_agrees_with_diffusers_on_sizes_that_are_no_power_of_two(exported, folder):
    component = build.build(diffusers_folder.open_folder(folder), "vae_decoder")
    feeds = torch_reference.examples(component, (7, 11), 2, 0, 0.0, seed=3)
    with torch_reference.loaded(component):
        expected = torch_reference.run(component, feeds)["sample"]
    got = runtime_bridge.open_graph(exported.report.folder / "vae_decoder/model.onnx").run(feeds)["sample"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_weights_read_layer_by_layer_give_what_weights_read_at_once_give(folder):
    opened = diffusers_folder.open_folder(folder)
    results = []
    for loading in (torch_reference.loaded, torch_reference.by_layer):
        component = build.build(opened, "unet")
        feeds = torch_reference.examples(component, (8, 8), 1, 5, 300.0, seed=3)
        with loading(component):
            results.append(torch_reference.run(component, feeds)["out_sample"])
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)


def test_the_same_source_gives_the_same_bytes(folder, tmp_path, exported):
    opened = diffusers_folder.open_folder(folder)
    from diffusette.export.float_graphs import export_float  # used here alone

    export_float(opened, "vae_encoder", tmp_path / "again", "cpu")
    assert save.fingerprint(tmp_path / "again/model.onnx") == exported.report.manifest.files["vae_encoder/model.onnx"]


def test_an_existing_destination_is_refused_before_anything_is_done(folder, exported):
    with pytest.raises(RequestError, match="--force"):
        export_model(folder, exported.report.folder)


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
        (Options(target="portable", precision="int8"), "in int8 for portable: expected fp32 or fp16"),
        (Options(precision={"vae": "int8"}), "'vae': unknown component; expected one of text_encoder"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(folder, tmp_path, options, message):
    with pytest.raises(RequestError, match=message):
        export_model(folder, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_precision_is_said_for_all_or_by_component():
    assert precision_of(None, "cpu") == "int8"
    assert precision_of(None, "directml") == "fp16"
    assert precision_of("fp32", "cpu") == "fp32"
    assert precision_of("unet=int8,vae_decoder=fp32", "cpu") == {"unet": "int8", "vae_decoder": "fp32"}
    with pytest.raises(RequestError, match="int3"):
        precision_of("int3", "cpu")


def test_what_the_manifest_needs_is_read_before_anything_is_traced(tmp_path):
    source = tiny_models.save(tmp_path / "source")
    shutil.rmtree(source / "tokenizer")
    seen = []
    with pytest.raises(BundleError, match="no tokenizer"):
        export_model(source, tmp_path / "bundle", None, lambda what, _done: seen.append(what))
    assert not [what for what in seen if "tracing" in what]


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"model_index\.json: no such file"):
        export_model(tmp_path, tmp_path / "out")
    assert not Path(tmp_path / "out").exists()
