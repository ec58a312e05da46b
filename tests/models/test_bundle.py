"""Opening bundles: good ones open, and each way of being bad is refused in one clear line."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from diffusette.models.bundle import DEMO, open_bundle, verify
from diffusette.models.errors import BundleError
from diffusette.models.formats import onnx_reader
from diffusette.models.manifest import Latent, Tokenizer
from diffusette.runtime.engine import providers
from diffusette.runtime.engine.session import open_session
from tests.support import small_graphs
from tests.support.small_graphs import edit_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_graphs.bundle(tmp_path / "bundle")


def relocate(folder: Path, location: str, **more: str) -> None:
    """Let the U-Net's weight say that its data is at `location`; the manifest agrees."""
    path = folder / "unet/model.onnx"
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = location if entry.key == "location" else more.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())
    small_graphs.relist(folder, "unet/model.onnx")


def test_a_bundle_opens_and_its_files_are_what_the_manifest_says(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert set(bundle.graphs) == {"text_encoder", "unet", "vae_decoder"}
    assert bundle.path("unet/model.onnx") == folder / "unet/model.onnx"
    seen: list[tuple[str, int, int]] = []
    assert verify(bundle, lambda name, done, total: seen.append((name, done, total))) == []
    assert sorted(seen, key=lambda step: step[1]) == seen
    assert seen[-1][1] == seen[-1][2] == sum(file.size for file in bundle.manifest.files.values())


@pytest.mark.parametrize(
    "location", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "C:x", "a//x", "./x", "x\0y", "*/_ORT_MEM_ADDR_/*", "x" * 300]
)
def test_external_data_outside_the_folder_is_refused_with_tensor_and_path(folder: Path, location: str) -> None:
    relocate(folder, location)
    with pytest.raises(BundleError, match=r"data of tensor 'w': the path .* is refused") as caught:
        open_bundle(folder)
    assert repr(location)[1:20] in str(caught.value)


def test_paths_of_the_manifest_may_not_leave_the_folder(folder: Path) -> None:
    shutil.copy(folder / "unet/model.onnx", folder.parent / "model.onnx")
    edit_manifest(folder, "components", "unet", "graph", value="../model.onnx")
    with pytest.raises(BundleError, match=r"components\.unet\.graph: the path '\.\./model\.onnx' is refused"):
        open_bundle(folder)
    other = open_bundle(small_graphs.bundle(folder.parent / "other"))
    with pytest.raises(BundleError, match="is refused"):
        other.path("../secret")


def test_data_that_is_missing_short_or_no_file_is_refused(folder: Path) -> None:
    data = folder / "unet/model.onnx_data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=r"model\.onnx_data: 63 bytes, expected 64 by the manifest"):
        open_bundle(folder)
    small_graphs.relist(folder, "unet/model.onnx_data")
    with pytest.raises(BundleError, match=r"tensor 'w': model\.onnx_data has 63 bytes, and 64 are needed"):
        open_bundle(folder)
    data.unlink()
    with pytest.raises(BundleError, match=r"model\.onnx_data is missing"):
        open_bundle(folder)
    os.mkfifo(data)
    with pytest.raises(BundleError, match="is not a regular file"):
        open_bundle(folder)
    data.unlink()
    data.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="is not a regular file"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["unet/model.onnx", "unet/model.onnx_data", "tokenizer/vocab.json", "scheduler/scheduler_config.json"])
def test_one_flipped_byte_is_found_by_verify(folder: Path, name: str) -> None:
    bundle = open_bundle(folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    problems = verify(bundle)
    assert len(problems) == 1
    assert problems[0].startswith(f"{name}: its SHA-256 is ")


def test_verify_names_what_is_missing_or_not_listed(folder: Path) -> None:
    bundle = open_bundle(folder)
    (folder / "tokenizer/merges.txt").unlink()
    (folder / "unet/extra.py").write_text("")
    assert [problem.split(":")[0] for problem in verify(bundle)] == ["tokenizer/merges.txt", "unet/extra.py"]


def test_a_graph_that_is_no_graph_is_refused(folder: Path) -> None:
    (folder / "unet/model.onnx").write_text("<html>Too many requests</html>")
    small_graphs.relist(folder, "unet/model.onnx")
    with pytest.raises(BundleError, match=r"unet/model\.onnx: not an ONNX model \(looks like HTML"):
        open_bundle(folder)


def test_a_custom_operator_is_refused(folder: Path) -> None:
    path = folder / "vae_decoder/model.onnx"
    proto = onnx.load(path)
    proto.graph.node.append(helper.make_node("Run", ["sample"], ["more"], domain="custom.library"))
    path.write_bytes(proto.SerializeToString())
    small_graphs.relist(folder, "vae_decoder/model.onnx")
    with pytest.raises(BundleError, match=r"operator 'Run' of domain 'custom\.library' is refused"):
        open_bundle(folder)


def test_the_graphs_of_a_bundle_are_bounded_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = open_bundle(folder).graphs.values()
    monkeypatch.setattr(onnx_reader, "MAX_ENTRIES", sum(graph.entries for graph in graphs))
    open_bundle(folder)
    unet = json.loads((folder / "manifest.json").read_text())["components"]["unet"]
    edit_manifest(folder, "components", "unet", "graphs", value={"full": {name: unet[name] for name in ("graph", "inputs", "outputs")}})
    with pytest.raises(BundleError, match=r"nodes and weights in all.*each time that the manifest lists it"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("schema",), 99, "schema 99, expected 1; upgrade"),
        (("latent", "channels"), "four", r"\$\.latent\.channels"),
        (("components", "unet", "precision"), "fp7", r"\$\.components\[\.\.\.\]\.precision"),
        (("components", "unet"), None, r"\$\.components\.unet is missing"),
        (("components", "text_encoder"), None, r"\$\.components\.text_encoder is missing"),
        (("tokenizers", "tokenizer"), None, r"\$\.tokenizers\.tokenizer is missing"),
        (("tokenizers", "tokenizer", "folder"), "../t", r"tokenizers\.tokenizer\.folder: the path '\.\./t' is refused"),
        (("preview",), [[0, 0, 0]], r"\$\.preview has 1 rows, expected 5"),
        (("family",), "sd9", r"\$\.family is 'sd9', expected one of sd1"),
        (("files", "unet/model.onnx_data"), None, r"\$\.files\.unet/model\.onnx_data is missing"),
        (("surprise",), 1, "unknown field `surprise`"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_path_of_the_field(folder: Path, keys: tuple[str, ...], value: object, said: str) -> None:
    edit_manifest(folder, *keys, value=value)
    with pytest.raises(BundleError, match=said):
        open_bundle(folder)


@pytest.mark.parametrize("data", [b"", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1e400}', b"x" * (17 << 20)])
def test_a_manifest_that_is_no_manifest_is_refused(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("inputs", "sample", "dtype"), "float16", r"sample says float16 .* but the graph .* says float32"),
        (("inputs", "sample", "shape"), ["batch", 4, "h"], r"sample says float32 \['batch', 4, 'h'\], but the graph .* says float32"),
        (("inputs", "sample", "shape"), ["batch", 9, "h", "w"], r"sample says"),
        (("inputs", "sample"), None, r"\$\.components\.unet\.inputs has \['encoder_hidden_states', 'timestep'\], but the graph .* has"),
        (("outputs", "more"), {"dtype": "float32", "shape": []}, r"\$\.components\.unet\.outputs has \['more', 'out_sample'\]"),
    ],
)
def test_manifest_and_graph_must_agree(folder: Path, keys: tuple[str, ...], value: object, said: str) -> None:
    edit_manifest(folder, "components", "unet", *keys, value=value)
    with pytest.raises(BundleError, match=said):
        open_bundle(folder)


def test_a_hub_cache_made_of_symlinks_opens_and_runs(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.rename(blobs / f"{number:040x}")
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
    bundle = open_bundle(snapshot)
    assert verify(bundle) == []
    session = open_session(bundle.path("unet/model.onnx"), providers.resolve("cpu"))
    assert set(session.inputs) == {"sample", "timestep", "encoder_hidden_states"}


def test_an_empty_or_missing_folder_gives_one_clear_line(tmp_path: Path) -> None:
    for folder, said in ((tmp_path, "it is empty"), (tmp_path / "none", "no such folder"), (Path(__file__), "not a folder")):
        with pytest.raises(BundleError, match=said) as caught:
            open_bundle(folder)
        assert "\n" not in str(caught.value)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"neither manifest\.json nor model_index\.json"):
        open_bundle(tmp_path)


def test_the_older_diffusers_layout_opens_without_a_manifest_and_runs(tmp_path: Path) -> None:
    bundle = open_bundle(small_graphs.plain_folder(tmp_path / "old"))
    said = bundle.manifest
    assert (said.family, said.target, said.latent) == ("sd1", "portable", Latent())
    assert said.tokenizers == {"tokenizer": Tokenizer("tokenizer", 77, 29)}
    assert (said.noise.betas, said.noise.prediction, said.noise.steps_offset) == ("scaled_linear", "epsilon", 1)
    session = open_session(bundle.path(said.components["text_encoder"].graph), providers.resolve("cpu"))
    assert session.inputs["input_ids"].dtype == "int32"
    assert session.run({"input_ids": np.zeros((1, 77), np.int64)})["last_hidden_state"].shape == (1, 77, 768)
    assert verify(bundle)[0].endswith("export it to get one")


@pytest.mark.parametrize("index", ["StableDiffusionPipeline", "ORTStableDiffusionPipeline"])
def test_optimums_layout_opens_with_what_its_configs_say(tmp_path: Path, index: str) -> None:
    folder = small_graphs.plain_folder(tmp_path / "optimum", ids=TensorProto.INT64, configs=True, index=index)
    said = open_bundle(folder).manifest
    assert said.latent == Latent(scaling=0.5)
    assert said.components["text_encoder"].inputs["input_ids"].dtype == "int64"
    assert (said.defaults.width, said.components["unet"].precision, said.source.name) == (512, "fp32", "optimum")


@pytest.mark.parametrize("length", [None, 1000000000000000019884624838656, "77", 0])
def test_a_tokenizer_without_a_length_takes_the_text_encoders(tmp_path: Path, length: object) -> None:
    folder = small_graphs.plain_folder(tmp_path / "optimum", configs=True)
    small_graphs.write(folder / "text_encoder/config.json", {"max_position_embeddings": 64})
    small_graphs.write(folder / "tokenizer/tokenizer_config.json", {} if length is None else {"model_max_length": length})
    assert open_bundle(folder).manifest.tokenizers["tokenizer"].length == 64


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("unet", ["evil_module", "UNet3D"], "unet is a 'UNet3D', expected ORTModelUnet or"),
        ("custom", ["os", "system"], "custom is a 'system', expected"),
        ("scheduler", ["diffusers", "MyScheduler"], "scheduler is a 'MyScheduler'"),
        ("_class_name", "FluxPipeline", "pipeline 'FluxPipeline' is not supported"),
    ],
)
def test_a_class_outside_the_list_is_refused_and_never_imported(tmp_path: Path, part: str, value: object, said: str) -> None:
    folder = small_graphs.plain_folder(tmp_path / "old")
    (folder / "evil_module.py").write_text("raise SystemExit('imported')")
    index = json.loads((folder / "model_index.json").read_text())
    small_graphs.write(folder / "model_index.json", index | {part: value})
    with pytest.raises(BundleError, match=said):
        open_bundle(folder)
    assert "evil_module" not in sys.modules


def test_a_plain_folder_that_lacks_something_says_what(tmp_path: Path) -> None:
    folder = small_graphs.plain_folder(tmp_path / "old")
    (folder / "scheduler/scheduler_config.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match=r"scheduler_config\.json"):
        open_bundle(folder)
    (folder / "unet/model.onnx").unlink()
    with pytest.raises(BundleError, match=r"unet/model\.onnx is missing: this folder has PyTorch weights"):
        open_bundle(folder)
    (folder / "model_index.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(BundleError, match="expected a config in JSON of at most"):
        open_bundle(folder)


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    folder = small_graphs.plain_folder(tmp_path / "old")
    with (folder / "unet/model.onnx_data").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file: reading it would take hours
    proto = onnx.load(folder / "unet/model.onnx", load_external_data=False)
    proto.graph.initializer[0].external_data[1].value = str((1 << 40) - 64)
    (folder / "unet/model.onnx").write_bytes(proto.SerializeToString())
    assert open_bundle(folder).graphs["unet"].initializers["w"].offset == (1 << 40) - 64


@pytest.mark.parametrize(
    ("domain", "operator", "opset", "target"),
    [
        ("", "GroupNormalization", 21, "portable"),
        ("com.microsoft", "MultiHeadAttention", 17, "portable"),
        ("com.microsoft", "MatMulIntegerToFloat", 17, "cpu"),
        ("com.microsoft", "GroupNorm", 17, "directml"),
        ("com.microsoft", "GroupNorm", 18, "cuda"),
        ("com.microsoft", "SkipGroupNorm", 17, "cuda"),
    ],
)
def test_a_plain_folder_is_for_where_its_operators_run(tmp_path: Path, domain: str, operator: str, opset: int, target: str) -> None:
    folder = small_graphs.plain_folder(tmp_path / "plain")
    for path in folder.glob("*/model.onnx"):
        model = onnx.load(path, load_external_data=False)
        model.opset_import[0].version = opset
        if path.parent.name == "unet":
            model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
            model.graph.node.append(onnx.helper.make_node(operator, ["sample"], ["unused"], domain=domain))
        onnx.save(model, path)
    assert open_bundle(folder).manifest.target == target


def test_a_graph_whose_name_makes_onnx_runtime_read_another_format_is_refused(sd1_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(sd1_bundle, folder)
    (folder / "unet/model.onnx").rename(folder / "unet/model.ort")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('unet/model.onnx"', 'unet/model.ort"'))
    with pytest.raises(BundleError, match=r"'unet/model\.ort', expected a file \*\.onnx"):
        open_bundle(folder)


def test_a_file_that_was_replaced_while_the_bundle_was_open_is_found_before_it_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(DEMO, folder)
    bundle = open_bundle(folder)
    assert bundle.unchanged("unet/model.onnx") == folder / "unet/model.onnx"
    shutil.copy(folder / "unet/model.onnx_data", tmp_path / "copy")
    (tmp_path / "copy").replace(folder / "unet/model.onnx_data")
    with pytest.raises(BundleError, match=r"was changed while the model was open; load the model again"):
        bundle.unchanged("unet/model.onnx")
    assert bundle.unchanged("text_encoder/model.onnx")
