"""export/sources/hub.py against a server that speaks the hub's protocol: what is fetched, pinned, resumed, and refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffusette.export.packaging import assemble
from diffusette.export.sources import hub, hub_files, locate
from diffusette.export.tracing import build
from diffusette.models.errors import BundleError, RequestError
from tests.support import hub_server, tiny_models

WEIGHT = "unet/diffusion_pytorch_model.safetensors"
CHILD = """
import sys
from diffusette.export.sources import hub
hub.fetch(sys.argv[1])
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Path → content of a tiny model as its makers upload it, with much that nobody needs."""
    folder = tiny_models.save(tmp_path_factory.mktemp("upload") / "model", "sd1")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    unwanted = {
        "unet/diffusion_pytorch_model.bin": b"\x80\x04pickle",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
        "unet/diffusion_pytorch_model.non_ema.safetensors": b"more",
        "v1-5.ckpt": b"\x80\x04pickle",
        "v1-5.safetensors": b"all in one",
        "sample.png": b"picture",
        "unet/run_me.py": b"print('no')",
        ".gitattributes": b"",
    }
    return found | unwanted


@pytest.fixture
def served(files, tmp_path, monkeypatch):
    """The hub with that model on its main branch; the environment points to it, and to an empty cache."""
    with hub_server.serving(hub_server.Hub()) as server:
        server.commit(files)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield server


def names(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_only_what_an_export_reads_is_fetched_and_a_second_time_nothing_is(served, files):
    seen = []
    found = hub.fetch("owner/model", None, lambda what, done: seen.append((what, done)))
    assert found.commit == served.refs["main"]
    assert WEIGHT in names(found.folder)
    assert {"model_index.json", "LICENSE", "README.md", "tokenizer/merges.txt", "scheduler/scheduler_config.json"} <= names(found.folder)
    assert not [name for name in names(found.folder) if name.endswith((".bin", ".ckpt", ".py", ".png", ".gitattributes"))]
    assert not {"v1-5.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"} & names(found.folder)
    for name in names(found.folder):
        assert (found.folder / name).read_bytes() == files[name]
    assert any(what.startswith(f"downloading {WEIGHT}") for what, _ in seen)
    assert all(0 <= done <= 1 for _, done in seen)
    served.log.clear()
    assert hub.fetch("owner/model") == found
    assert [path for method, path, _ in served.log if "/resolve/" in path or "/cdn/" in path] == []


def test_the_manifest_has_the_models_name_and_the_commit(served, tmp_path):
    commit = served.refs["main"]
    opened = locate.open_source(locate.locate("owner/model", "main", None, lambda _what, _done: None))
    build.build(opened, "unet")
    made = assemble.prepare(assemble.begin(opened, tmp_path / "bundle", "portable"), opened, tmp_path / "bundle", {}, None, [])
    assert (made.source.name, made.source.revision, made.source.licence) == ("owner/model", commit, "apache-2.0")
    assert "LICENSE" in made.files


def test_a_branch_that_moves_meanwhile_changes_nothing_and_an_older_commit_can_be_asked_for(served, files):
    first = served.refs["main"]
    served.on_listing = lambda: served.commit(files | {WEIGHT: b"other weights"})
    found = hub.fetch("owner/model", "main")
    served.on_listing = None
    assert (found.commit, (found.folder / WEIGHT).read_bytes()) == (first, files[WEIGHT])
    moved = served.refs["main"]
    assert moved != first
    assert hub.fetch("owner/model").commit == moved
    assert hub.fetch("owner/model", first) == found


@pytest.fixture
def heavy(served, files):
    """The model with 24 MB of weights: huggingface_hub writes 10 MiB at a time."""
    data = np.random.default_rng(0).bytes(24_000_000)
    served.commit(files | {WEIGHT: data})
    return data


def test_a_connection_that_breaks_is_taken_up_again_where_it_broke(served, heavy):
    served.cut[WEIGHT] = 15_000_000
    found = hub.fetch("owner/model")
    assert served.fetched(WEIGHT) == ["", f"bytes={10 << 20}-"]
    assert (found.folder / WEIGHT).read_bytes() == heavy


def test_a_download_killed_with_kill_9_goes_on_where_it_stopped(served, heavy, tmp_path):
    served.hang[WEIGHT] = 15_000_000
    digest = hashlib.sha256(heavy).hexdigest()
    partial = tmp_path / f"cache/models--owner--model/blobs/{digest}.diffusette.incomplete"
    with subprocess.Popen([sys.executable, "-c", CHILD, "owner/model"]) as process:
        while process.poll() is None and not (partial.exists() and partial.stat().st_size):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    served.hang.clear()
    left = partial.stat().st_size
    assert 0 < left <= 15_000_000
    assert not partial.with_name(digest).exists()
    served.log.clear()
    found = hub.fetch("owner/model")
    assert served.fetched(WEIGHT) == [f"bytes={left}-"]
    assert (found.folder / WEIGHT).read_bytes() == heavy
    assert not partial.exists()


def test_content_with_another_hash_is_refused_and_kept_out_of_the_cache(served, files):
    served.flip.add(WEIGHT)
    with pytest.raises(BundleError, match=r"unet/diffusion_pytorch_model\.safetensors: the download has the hash .* refused"):
        hub.fetch("owner/model")
    served.flip.clear()
    assert (hub.fetch("owner/model").folder / WEIGHT).read_bytes() == files[WEIGHT]


def test_another_size_than_the_listing_says_is_refused_before_anything_is_fetched(served):
    served.linked_size[WEIGHT] = 17
    with pytest.raises(BundleError, match="the hub offers 17 bytes"):
        hub.fetch("owner/model")
    assert served.fetched(WEIGHT) == []


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(served, files):
    found = hub.fetch("owner/model")
    blob = (found.folder / WEIGHT).resolve()
    blob.write_bytes(b"x" * blob.stat().st_size)
    assert (hub.fetch("owner/model").folder / WEIGHT).read_bytes() == files[WEIGHT]


def test_without_a_network_the_cache_is_used_and_its_commit_is_known(served, monkeypatch, tmp_path):
    found = hub.fetch("owner/model")
    served.log.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.fetch("owner/model") == found
    assert served.log == []
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(BundleError, match=r"HF_HUB_OFFLINE is set, and .*empty has no copy"):
        hub.fetch("owner/model")


def test_a_hub_that_cannot_be_reached_is_one_line_unless_the_cache_has_it(served, monkeypatch, tmp_path):
    found = hub.fetch("owner/model")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch("owner/model") == found
    assert hub.fetch("owner/model", found.commit) == found
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(BundleError, match=r"http://127\.0\.0\.1:9 cannot be reached, and .*empty has no copy"):
        hub.fetch("owner/model")


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/nothing", None, "no such folder or file here, and no such model at"),
        ("owner/model", "v9", "owner/model has no revision 'v9'"),
        ("owner/model", "0" * 40, "owner/model has no revision"),
        ("owner/a--b", None, "no such folder or file here"),
    ],
)
def test_what_is_not_there_is_refused_by_name(served, name, revision, message):
    with pytest.raises(RequestError, match=message):
        hub.fetch(name, revision)


def test_a_gated_model_says_where_to_agree(served):
    served.gated = True
    said = r"require you to accept their terms first: do so at http://127\.0\.0\.1:\d+/owner/model, then set HF_TOKEN"
    with pytest.raises(RequestError, match=said):
        hub.fetch("owner/model")


def test_a_private_model_is_fetched_with_the_token_which_no_other_host_sees(served, monkeypatch):
    served.token = "hf_secret"
    with pytest.raises(RequestError, match="a private one needs HF_TOKEN"):
        hub.fetch("owner/model")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert WEIGHT in names(hub.fetch("owner/model").folder)
    assert served.shown == []


def test_telemetry_is_off_before_the_hubs_library_is_loaded():
    code = "import diffusette.export; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_model_that_only_has_pickles_is_refused_before_anything_is_fetched(served, files):
    served.commit({name: data for name, data in files.items() if not name.startswith("unet/") or name.endswith((".json", ".bin"))})
    with pytest.raises(BundleError, match=r"unet has no weights in safetensors \(only diffusion_pytorch_model\.bin, a pickle"):
        hub.fetch("owner/model")
    assert not [path for _, path, _ in served.log if "/resolve/" in path]


def test_an_architecture_that_is_not_supported_is_refused_before_its_weights_are_fetched(served, files):
    index = files["model_index.json"].replace(b"StableDiffusionPipeline", b"FluxPipeline")
    served.commit(files | {"model_index.json": index})
    with pytest.raises(BundleError, match="'FluxPipeline' is not supported"):
        hub.fetch("owner/model")
    assert served.fetched(WEIGHT) == []


def test_the_half_precision_variant_is_taken_where_only_that_exists():
    paths = {"model_index.json", "unet/config.json", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"}
    parts = {f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)}
    index = {"unet/diffusion_pytorch_model.safetensors.index.fp16.json"}
    assert set(hub_files.choose(paths | parts | index, "m")) == paths | parts | index
    whole = {"unet/diffusion_pytorch_model.safetensors"}
    assert set(hub_files.choose(paths | parts | index | whole, "m")) == paths | whole


def test_a_model_of_graphs_is_fetched_as_graphs():
    graphs = {"unet/model.onnx", "unet/model.onnx_data", "vae_decoder/model.onnx", "text_encoder/model.onnx"}
    configs = {"model_index.json", "unet/config.json", "vae_decoder/config.json", "scheduler/scheduler_config.json"}
    assert set(hub_files.choose(graphs | configs | {"unet/extra.py", "safety_checker/model.onnx"}, "m")) == graphs | configs


def test_a_model_in_one_file_is_named_and_a_path_is_never_looked_up(served):
    with pytest.raises(BundleError, match=r"no model_index\.json, .*: download a\.safetensors and give that file"):
        hub_files.choose({"a.safetensors", "README.md"}, "owner/model")
    assert hub.is_id("stabilityai/sd-turbo")
    for text in ("./owner/model", "/owner/model", "model", "a/b/c", "owner/", "C:\\a/b", "../b", "owner/model\n"):
        assert not hub.is_id(text), text
    with pytest.raises(RequestError, match=r"--revision v1: .* is a path"):
        locate.locate(Path("owner/model"), "v1", None, lambda _what, _done: None)
    assert served.log == []


def test_a_path_in_the_working_folder_wins_over_a_model_of_that_name(served, monkeypatch, tmp_path):
    (tmp_path / "owner/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate.locate("owner/model", None, None, lambda _what, _done: None).path == Path("owner/model")
    assert served.log == []


def test_an_unknown_model_is_one_line_on_the_command_line_and_nothing_is_left(served, tmp_path):
    program = Path(sys.executable).with_name("diffusette")
    command = [program, "export", "owner/nothing", tmp_path / "out", "--revision", "v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 1
    assert done.stderr.startswith("diffusette: owner/nothing: no such folder or file here, and no such model at http://127.0.0.1:")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told(served, monkeypatch, tmp_path):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounts a small tmpfs")
    (tmp_path / "small").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", tmp_path / "small"], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "small"))
        from diffusette.models.errors import ResourceError  # here alone

        with pytest.raises(ResourceError, match="free"):
            hub.fetch("owner/model")
    finally:
        shutil.rmtree(tmp_path / "small", ignore_errors=True)
        subprocess.run(["umount", tmp_path / "small"], check=True)
