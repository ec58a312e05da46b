"""Available providers, and the messages about missing ones."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from diffusette.models.errors import ProviderError
from diffusette.runtime.engine import providers
from diffusette.runtime.engine.provider_table import ORDER
from diffusette.runtime.engine.providers import (
    TABLE,
    built_in,
    distributions,
    onnxruntime,
    plugin_devices,
    resolve,
    why_clashing,
    why_missing,
)
from diffusette.runtime.engine.session_options import SessionOptions, settings_for

HERE = [name for name in TABLE if not why_missing(TABLE[name])]


def test_the_cpu_provider_is_available() -> None:
    assert resolve("cpu").execution_provider == "CPUExecutionProvider"
    assert resolve("cpu", "portable") == resolve("cpu", "cpu") == TABLE["cpu"]


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(ProviderError, match=r"provider 'gpu' is not known: choose one of auto, cuda, .*, webgpu, cpu"):
        resolve("gpu")


@pytest.mark.parametrize("name", sorted(TABLE.keys() - set(HERE)))
def test_a_missing_provider_is_an_error_with_a_remedy(name: str) -> None:
    with pytest.raises(
        ProviderError, match=rf"^{name} is .*(pip install \"diffusette\[{name}\]\"|(Windows|macOS) only|no device of this machine)"
    ):
        resolve(name)


def test_auto_selects_an_available_provider_and_notes_the_skipped_ones() -> None:
    found = resolve("auto", "cpu")
    assert found.name == "cpu"
    order = ORDER[sys.platform]
    assert found.note == "; ".join(
        f"{name} is available, but this bundle is made for 'cpu'; export the model with --target {TABLE[name].targets[0]}"
        for name in order
        if name in HERE and name != "cpu"
    )
    found = resolve("auto", "portable")
    assert found.name in HERE
    if found.name == "cpu":
        assert found.note == "; ".join(f"{name} is not available" for name in order if name != "cpu")


@pytest.mark.parametrize(
    ("name", "target"), [("cpu", "cuda"), ("cpu", "openvino"), ("cuda", "cpu"), ("openvino", "directml"), ("webgpu", "cuda")]
)
def test_a_graph_made_for_another_provider_is_refused_naming_both(name: str, target: providers.Target) -> None:
    with pytest.raises(ProviderError, match=f"made for '{target}', but the provider '{name}' runs '{TABLE[name].targets[0]}'"):
        resolve(name, target)


def test_auto_without_a_suitable_provider_names_the_package_to_install() -> None:
    if "cuda" in HERE:
        pytest.skip("CUDA is here")
    with pytest.raises(
        ProviderError,
        match=r"no provider on this machine can run a bundle made for 'cuda': cuda is not .*pip install \"diffusette\[cuda\]\"",
    ):
        resolve("auto", "cuda")


def test_every_target_of_a_manifest_has_a_provider_and_names_agree() -> None:
    assert {target for provider in TABLE.values() for target in provider.targets} == set(providers.Target.__args__)
    assert all(name == provider.name for name, provider in TABLE.items())


def test_the_table_has_the_requirements_of_each_provider() -> None:
    cuda, directml = TABLE["cuda"], TABLE["directml"]
    assert cuda.options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert cuda.options["arena_extend_strategy"] == "kSameAsRequested"
    assert cuda.options["prefer_nhwc"] == "1"
    assert (directml.fixed_shapes, directml.memory_pattern, directml.one_run_at_a_time, directml.graph_cache) == (True, False, True, False)


def fake_wheel(site: Path, name: str, version: str, *, owner: bool = True) -> None:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    files = (
        ["onnxruntime/LICENSE,,", "onnxruntime/__init__.py,sha256=x,1"]
        if owner
        else [f"{name}/__init__.py,,", "a/onnxruntime/__init__.py,,"]
    )
    (info / "RECORD").write_text("\n".join(files) + "\n")


def test_distributions_that_own_the_module_are_found_and_plugins_are_not(tmp_path: Path) -> None:
    fake_wheel(tmp_path, "onnxruntime", "1.31.1")
    fake_wheel(tmp_path, "onnxruntime_ep_openvino", "1.8.1", owner=False)
    fake_wheel(tmp_path, "numpy", "2.4.0", owner=False)
    (tmp_path / "onnxruntime_broken-1.dist-info").mkdir()
    assert distributions(tmp_path) == {"onnxruntime": "1.31.1"}
    assert why_clashing(distributions(tmp_path)) == ""
    fake_wheel(tmp_path, "onnxruntime_gpu", "1.31.0")
    assert distributions(tmp_path) == {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}


def test_the_one_installed_here_is_found() -> None:
    (version,) = distributions().values()
    assert version == onnxruntime().__version__


def child(code: str, *path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new Python that finds modules in `path` first."""
    env = (
        dict(os.environ)
        | {"DIFFUSETTE_CACHE": str((*path, Path(os.devnull))[0] / "cache"), "PYTHONPATH": os.pathsep.join(map(str, path))}
        | environment
    )
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, env=env)


def test_two_clashing_distributions_fail_with_the_remedy_before_anything_is_loaded(tmp_path: Path) -> None:
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    (tmp_path / "onnxruntime").symlink_to(Path(spec.origin).parent)
    for name in ("onnxruntime", "onnxruntime_gpu"):
        fake_wheel(tmp_path, name, "1.31.1")
    done = child(
        "import sys\nfrom diffusette.runtime import doctor\nfrom diffusette.runtime.engine import providers\n"
        "try: providers.resolve('cpu')\nexcept Exception as error: print(type(error).__name__, error)\n"
        "print('onnxruntime' in sys.modules)\nprint(doctor.report().problems[0])",
        tmp_path,
    )
    first, loaded, problem = done.stdout.splitlines()
    assert first.startswith("ProviderError onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are installed together")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then one of them: pip install" in first
    assert loaded == "False"
    assert problem.startswith("onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are installed together")


def test_without_onnxruntime_the_package_to_install_is_named(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text("raise ImportError('no such library')")
    done = child(
        "from diffusette.runtime import doctor\nfrom diffusette.runtime.engine import providers\n"
        "try: providers.resolve('auto')\nexcept Exception as error: print(type(error).__name__, error)\nprint(doctor.report().problems[0])",
        tmp_path,
    )
    for line in done.stdout.splitlines():
        assert 'onnxruntime cannot be loaded (no such library): pip install "diffusette[cpu]"' in line
    assert len(done.stdout.splitlines()) == 2


def test_importing_the_runtime_imports_no_onnxruntime_and_loading_it_switches_telemetry_off() -> None:
    done = child(
        "import sys, os\nfrom diffusette.runtime.engine import session, providers\nprint('onnxruntime' in sys.modules)\n"
        "providers.onnxruntime()\nprint('onnxruntime' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'], providers.telemetry())"
    )
    assert done.stdout.split() == ["False", "True", "1", "False"]
    assert done.stderr == ""


def test_a_plugin_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime_ep_webgpu").mkdir()
    (tmp_path / "onnxruntime_ep_webgpu/__init__.py").write_text("def get_library_path(): return '/nowhere/lib.so'")
    done = child(
        "from diffusette.runtime.engine import providers\n"
        "try: providers.resolve('webgpu')\nexcept Exception as error: print(type(error).__name__, error)",
        tmp_path,
    )
    assert done.stdout.startswith("ProviderError the plug-in of webgpu cannot be loaded (")
    assert "pip install --force-reinstall onnxruntime-ep-webgpu" in done.stdout


def test_an_installed_plugin_lists_its_devices_or_reports_that_it_has_none() -> None:
    if find_spec("onnxruntime_ep_openvino") is None:
        pytest.skip("the OpenVINO plug-in is not installed")
    devices = plugin_devices(TABLE["openvino"])
    assert plugin_devices(TABLE["openvino"]) == devices or len(devices) == len(plugin_devices(TABLE["openvino"]))
    assert bool(devices) == (why_missing(TABLE["openvino"]) == "")


def test_a_provider_in_onnxruntimes_own_wheel_needs_no_plugin() -> None:
    inside = replace(TABLE["openvino"], execution_provider="CPUExecutionProvider")
    assert built_in(inside)
    assert why_missing(inside) == ""
    assert plugin_devices(inside) == []
    assert not built_in(TABLE["directml"])


def test_a_provider_that_compiles_graphs_receives_them_as_exported() -> None:
    levels = onnxruntime().GraphOptimizationLevel
    compiling = settings_for(onnxruntime(), replace(TABLE["cpu"], compiler=True), SessionOptions())
    assert compiling.graph_optimization_level == levels.ORT_DISABLE_ALL
    assert settings_for(onnxruntime(), TABLE["cpu"], SessionOptions()).graph_optimization_level == levels.ORT_ENABLE_ALL
    assert (TABLE["openvino"].compiler, TABLE["openvino"].fixed_shapes) == (True, True)
