"""The folder that `diffusette web` writes, and what it refuses to write."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from diffusette.cli.main import cli
from diffusette.models import manifest as manifests
from diffusette.models.bundle import DEMO, Bundle, open_bundle, read_manifest
from diffusette.models.errors import DiffusetteError
from diffusette.models.manifest import fingerprint
from diffusette.shipping.browser import fit, web_runtime
from diffusette.shipping.browser.single_file import write_single_file
from diffusette.shipping.browser.write_site import write_site
from tests.shipping.browser.conftest import SITE


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["web", *map(str, arguments)])


@pytest.fixture(scope="module")
def site(ort_web: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's site."""
    folder = tmp_path_factory.mktemp("sites") / "demo"
    done = run(DEMO, folder, "--runtime", ort_web, "--title", "Emoji & <more>")
    assert done.exit_code == 0, done.output
    return folder


def hash_of(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def test_every_file_is_listed_with_its_hash_and_nothing_of_another_host_is_named(site: Path) -> None:
    facts = json.loads((site / "site.json").read_text("utf-8"))
    present = {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert present.keys() - facts["files"].keys() == {"site.json", "index.html", "sw.js", "_headers"}
    assert {name: {"size": len(present[name]), "sha256": hash_of(present[name])} for name in facts["files"]} == facts["files"]
    assert facts["model"]["hash"] == fingerprint(read_manifest(DEMO))
    ours = [data.decode() for name, data in present.items() if name.startswith("app/") or "/" not in name]
    addresses = {found for text in ours for found in re.findall(r"(?:https?:|wss?:)?//[\w.-]+\.\w+/[\w./-]*", text)}
    names = {"//www.w3.org/", "//cv.iptc.org/", "//iptc.org/", "//ns.adobe.com/"}  # of standards, in metadata and comments
    assert {address for address in addresses if not any(name in address for name in names)} == set()


def test_the_page_allows_its_own_modules_alone_each_with_its_hash(site: Path) -> None:
    page = (site / "index.html").read_text("utf-8")
    assert "{{" not in page
    assert "<title>Emoji &amp; &lt;more&gt;</title>" in page
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    (inline,) = re.findall(r"<script(?![^>]*src=)[^>]*>([^<]*)</script>", page)
    assert f"'sha256-{hash_of(inline.encode())}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'self';" in policy
    modules = json.loads(inline)["integrity"]
    assert modules == {
        f"./app/{path.name}": f"sha256-{hash_of(path.read_bytes())}" for path in SITE.glob("*.js") if path.name not in {"sw.js", "boot.js"}
    }
    kept = json.loads(re.findall(r"const FILES = (\{.*?\});", (site / "sw.js").read_text("utf-8"), re.DOTALL)[0])
    assert kept == {name: hash_of((site / name).read_bytes()) for name in kept}
    assert {"index.html", "site.json", "runtime/ort.wasm.js", "app/worker.js", "app/de.json"} <= kept.keys()


def test_the_site_holds_the_files_that_the_page_asks_for_and_the_licence(site: Path, node: Callable[..., Any]) -> None:
    asked = node("files", bundle=str(DEMO))
    assert sorted(asked) == sorted(fit.files_of(read_manifest(DEMO)))
    model = {path.relative_to(site / "model").as_posix() for path in (site / "model").rglob("*") if path.is_file()}
    assert model == {*asked, "manifest.json", "LICENSE.md", "README.md"}
    assert (site / "runtime" / "LICENSE.txt").read_text().startswith("MIT License")


def test_json_tells_sizes_and_memory(ort_web: Path, tmp_path: Path) -> None:
    done = run(DEMO, tmp_path / "site", "--runtime", ort_web, "--json")
    facts = json.loads(done.stdout)
    assert facts["size"] == sum(path.stat().st_size for path in (tmp_path / "site").rglob("*") if path.is_file())
    assert 40e6 < facts["download"] < facts["size"] < facts["memory"] < 400e6


def test_an_older_site_is_replaced_on_demand_and_any_other_folder_never(site: Path, ort_web: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    (folder / "old.txt").write_text("old")
    assert "already exists; choose another name (replace it with --force)" in str(run(DEMO, folder, "--runtime", ort_web).exception)
    assert run(DEMO, folder, "--runtime", ort_web, "--force").exit_code == 0
    assert not (folder / "old.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert "it is not a site, so nothing replaces it" in str(run(DEMO, tmp_path / "mine", "--runtime", ort_web, "--force").exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "site"]


def test_the_runtime_comes_from_a_package_too_and_only_in_the_pinned_version(ort_web: Path, tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime-web.tgz"
    with tarfile.open(package, "w:gz", compresslevel=1) as archive:
        for part in web_runtime.WASM:
            archive.add(ort_web / "dist" / part.name, f"package/dist/{part.name}")
    assert run(DEMO, tmp_path / "site", "--runtime", package).exit_code == 0
    changed = tmp_path / "changed" / "dist"
    changed.mkdir(parents=True)
    for part in web_runtime.WASM:
        (changed / part.name).write_bytes((ort_web / "dist" / part.name).read_bytes()[:-1] + b"\0")
    for runtime, said in (
        (changed.parent, "is not that of onnxruntime-web@"),
        (tmp_path, "is not in this folder; expected the npm package"),
        (DEMO / "manifest.json", "not a package of npm"),
        (tmp_path / "none.tgz", "no such file"),
    ):
        message = str(run(DEMO, tmp_path / "other", "--runtime", runtime).exception)
        assert said in message
        assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".*"))


def test_without_a_network_the_message_says_how_to_bring_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    message = str(run(DEMO, tmp_path / "site").exception)
    assert f"get it with `npm pack {web_runtime.PACKAGE}` where there is a network, and name the file with --runtime" in message
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "ftp://example.org")
    assert "expected the address of an npm registry over https" in str(run(DEMO, tmp_path / "site").exception)
    assert list(tmp_path.iterdir()) == []


def changed(**fields: Any) -> Bundle:
    """The demo model, as if its manifest said something else."""
    bundle = open_bundle(DEMO)
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, **fields), bundle.graphs, bundle.looked_at)


def larger(factor: int) -> dict[str, manifests.File]:
    files = read_manifest(DEMO).files
    return {name: msgspec.structs.replace(file, size=file.size * factor) for name, file in files.items()}


DEMO_MANIFEST = read_manifest(DEMO)
UNET = DEMO_MANIFEST.components["unet"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"family": "sdxl"}, "the family is sdxl; sites draw with text-to-image models of sd1, sd2 only"),
        ({"target": "cuda"}, "the graphs are for cuda; browsers run those of cpu, portable, openvino"),
        ({"components": {**DEMO_MANIFEST.components, "safety_checker": UNET}}, "the model has a safety checker, which does not run"),
        ({"noise": manifests.Noise(prediction="flow")}, "it predicts flow; sites know epsilon, v_prediction, sample"),
        ({"files": {}}, "has no manifest.json: make a bundle of it"),
        ({"files": larger(80)}, "drawing would take about"),
        (
            {"components": {**DEMO_MANIFEST.components, "unet": msgspec.structs.replace(UNET, inputs={"y": UNET.inputs["sample"]})}},
            "unet.y",
        ),
    ],
)
def test_what_a_browser_cannot_draw_is_refused_in_one_line(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(DiffusetteError, match=re.escape(said)) as caught:
        write_site(changed(**fields), tmp_path / "site", tool="Diffusette")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_large_model_is_written_with_a_warning_and_memory_grows_with_the_image(ort_web: Path, tmp_path: Path) -> None:
    manifest = changed(files=larger(40)).manifest
    assert fit.LARGE < fit.peak(manifest) < fit.LARGEST
    memory = fit.memory(DEMO_MANIFEST)
    assert memory.peak(512 * 512) == memory.open + fit.DECODING * 512 * 512


def test_a_single_file_names_no_other_file_and_allows_its_own_script_and_style_alone(ort_web: Path, tmp_path: Path) -> None:
    done = run(DEMO, tmp_path / "fox.html", "--single-file", "--runtime", ort_web, "--title", "A </script> fox", "--json")
    page = (tmp_path / "fox.html").read_text("utf-8")
    assert json.loads(done.stdout)["download"] == len(page.encode()) < 40e6
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert f"script-src 'sha256-{hash_of(script.encode())}' blob: 'wasm-unsafe-eval'" in policy
    assert f"style-src 'sha256-{hash_of(style.encode())}';" in policy
    assert "A &lt;/script&gt; fox" in page
    assert {found for found in re.findall(r'(?:src|href)="([^"#]+)"', page) if not found.startswith("data:")} == set()
    blocks = dict(re.findall(r'<script type="text/plain" data-path="([^"]+)">([\w+/=]*)</script>', page))
    files = {name: gzip.decompress(base64.b64decode(text)) for name, text in blocks.items()}
    assert files["model/unet/model.onnx_data"] == (DEMO / "unet" / "model.onnx_data").read_bytes()
    order = re.findall(r'data-modules="([^"]+)"', page)[0].split()
    for number, path in enumerate(order):
        imported = {f"app/{name}" for name in re.findall(r'from "\./([\w.]+)"', files[path].decode())}
        assert imported <= set(order[:number]), path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox.html"]


def test_a_single_file_is_not_written_over_another_nor_for_a_large_model(ort_web: Path, tmp_path: Path) -> None:
    (tmp_path / "old.html").write_text("old")
    for name, said in (("old.html", "already exists; choose another name"), ("site", "expected the name of a file that ends in .html")):
        assert said in str(run(DEMO, tmp_path / name, "--single-file", "--runtime", ort_web).exception)
    with pytest.raises(DiffusetteError, match="too large for one file: write a folder"):
        write_single_file(changed(files=larger(20)), tmp_path / "new.html", tool="Diffusette", runtime=ort_web)
    assert (tmp_path / "old.html").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.html"]


def test_a_damaged_bundle_is_refused_and_nothing_is_left(ort_web: Path, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "bundle")
    weights = tmp_path / "bundle" / "unet" / "model.onnx_data"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    message = str(run(tmp_path / "bundle", tmp_path / "site", "--runtime", ort_web).exception)
    assert "unet/model.onnx_data: changed since the export (SHA-256)" in message
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
