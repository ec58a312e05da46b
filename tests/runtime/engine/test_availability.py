"""A provider is available if it ran a graph: asked in a process of its own, once, until packages, driver or environment change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from diffusette.models.bundle import open_bundle
from diffusette.models.errors import ProviderError
from diffusette.runtime.engine import availability, ort_library, probe
from diffusette.runtime.engine.components import Components
from diffusette.runtime.engine.devices import Device, from_ort, ranked
from diffusette.runtime.engine.memory_plans import choose_plan, estimate
from diffusette.runtime.engine.plugins import on_device
from diffusette.runtime.engine.provider_table import TABLE
from diffusette.runtime.engine.session_options import SessionOptions
from diffusette.runtime.pipeline import load

CUDA = TABLE["cuda"]
FAKE = """
import importlib.util, os, sys
here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
del sys.modules["onnxruntime"]
spec = importlib.util.find_spec("onnxruntime")
real = importlib.util.module_from_spec(spec)
sys.modules["onnxruntime"] = real
spec.loader.exec_module(real)
sys.path.insert(0, here)
more = []
listed = real.get_available_providers
"""
"""The real onnxruntime in the disguise of another wheel."""


def run(code: str, site: Path, **environment: str) -> str:
    """What `code` prints in a Python that finds modules in `site` first and keeps its answers there."""
    env = os.environ | {"PYTHONPATH": str(site), "DIFFUSETTE_CACHE": str(site / "cache")} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wheel(site: Path, more: str) -> Path:
    (site / "onnxruntime").mkdir(parents=True)
    (site / "onnxruntime/__init__.py").write_text(FAKE + more)
    return site


LISTS_CUDA = "real.get_available_providers = lambda: ['CUDAExecutionProvider', *listed()]\n"
RESOLVE = """
from diffusette.runtime.engine import availability, providers
print(providers.resolve("auto", "portable").name)
print(providers.why_missing(providers.TABLE["cuda"]))
"""


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that lists CUDA on a machine without a card, as onnxruntime-gpu does."""
    return wheel(tmp_path_factory.mktemp("wheel"), LISTS_CUDA)


def test_a_listed_provider_without_a_card_is_not_available_and_auto_takes_the_cpu(listing: Path) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("a card is here")
    chosen, why = run(RESOLVE, listing).splitlines()
    assert chosen == "cpu"
    assert why.startswith("cuda is installed, but finds no device of this machine: it needs an NVIDIA card and its driver")
    kept = json.loads((listing / "cache" / availability.FILE).read_text())
    assert not kept["cuda"]["answer"]["works"]


def test_the_answer_is_recalled_without_another_process(listing: Path) -> None:
    run(RESOLVE, listing)
    code = "import subprocess; subprocess.run = None\n" + RESOLVE
    assert run(code, listing).startswith("cpu\ncuda is installed, but")


def test_a_driver_that_crashes_ends_its_own_process_only(tmp_path: Path) -> None:
    crash = "import os\nif sys.argv[1:2] == ['migraphx']: os.abort()\n"
    code = RESOLVE.replace("cuda", "migraphx")
    chosen, why = run(code, wheel(tmp_path, LISTS_CUDA.replace("CUDA", "MIGraphX") + crash)).splitlines()
    assert chosen == "cpu"
    assert "crashed with exit code" in why
    assert "install or update an AMD card and ROCm" in why


def test_a_machine_with_the_cpu_alone_starts_no_process(tmp_path: Path) -> None:
    code = (
        "import subprocess; subprocess.run = None\nfrom diffusette.runtime.engine import providers\nprint(providers.resolve('auto').name)"
    )
    assert run(code, tmp_path) == "cpu\n"
    assert not (tmp_path / "cache").exists()


def test_a_plugin_stays_one_though_onnxruntime_lists_it_once_registered(tmp_path: Path) -> None:
    register = "real.get_available_providers = lambda: [*more, *listed()]\n"
    register += "real.register_execution_provider_library = lambda name, path: more.append('WebGpuExecutionProvider')\n"
    site = wheel(tmp_path, register)
    (site / "onnxruntime_ep_webgpu").mkdir()
    (site / "onnxruntime_ep_webgpu/__init__.py").write_text("def get_library_path(): return 'x'")
    code = """
from diffusette.runtime.engine import plugins, providers
webgpu = providers.TABLE["webgpu"]
plugins.plugin_devices(webgpu)
print("WebGpuExecutionProvider" in providers.onnxruntime().get_available_providers(), providers.built_in(webgpu))
"""
    assert run(code, site) == "True False\n"


def test_the_fingerprint_changes_with_what_drivers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    before = availability.fingerprint(CUDA)
    assert availability.fingerprint(CUDA) == before
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert availability.fingerprint(CUDA) != before


def test_the_small_graph_is_valid_and_the_cpu_computes_it(tmp_path: Path) -> None:
    (tmp_path / "probe.onnx").write_bytes(probe.graph_of(8, 16, 2))
    onnx.checker.check_model(onnx.load(tmp_path / "probe.onnx"), full_check=True)
    answer = probe.examine(TABLE["cpu"])
    assert (answer.works, answer.snr_db, answer.why) == (True, 200.0, "")
    assert answer.gflops > 0


def test_libraries_of_pips_packages_are_loaded_before_a_cuda_session(tmp_path: Path) -> None:
    preload = "def preload_dlls():\n    print('noise'); open(os.environ['SEEN'], 'w').close()\nreal.preload_dlls = preload_dlls\n"
    code = """
from dataclasses import replace
from pathlib import Path
from diffusette.runtime.engine import probe, session
cpu = replace(probe.TABLE["cpu"], preload=True)
Path("probe.onnx").write_bytes(probe.graph_of(8, 16, 2))
session.open_session(Path("probe.onnx"), cpu)
"""
    site = wheel(tmp_path, preload)
    assert run(f"import os; os.chdir({str(tmp_path)!r})\n{code}", site, SEEN=str(tmp_path / "seen")) == ""
    assert (tmp_path / "seen").exists()


def test_what_a_library_writes_to_standard_error_while_it_loads_stays_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with ort_library._without_standard_error():
        os.write(2, b"Failed to create DXGI factory.\n")
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


GPU = Device("Small", "GPU", 1, False)
CARDS = [Device("Processor", "CPU"), GPU, Device("Card", "GPU", 0, True, 8 << 30), Device("Larger card", "GPU", 2, True, 24 << 30)]


def test_cards_come_before_integrated_graphics_and_those_before_processors() -> None:
    names = [device.name for device, _ in ranked([(one, None) for one in CARDS])]
    assert names == ["Larger card", "Card", "Small", "Processor"]


def test_the_chosen_device_reaches_the_provider_by_its_own_number() -> None:
    devices = [device for device, _ in ranked([(one, None) for one in CARDS])]
    chosen = on_device(CUDA, devices, 0)
    assert (chosen.options["device_id"], chosen.device_id, chosen.memory) == ("2", 2, 24 << 30)
    assert on_device(CUDA, (), 0) == CUDA


def test_a_device_that_is_not_there_is_refused_with_the_list() -> None:
    with pytest.raises(ProviderError, match=r"device 3: cpu has no such device; choose one of 0, its only one"):
        load(provider="cpu", device=3)


class _Named:
    def __init__(self, **fields: object) -> None:
        self.__dict__ |= fields


@pytest.mark.parametrize(("discrete", "memory"), [("1", 8 << 30), ("0", 0)])
def test_facts_of_onnxruntimes_device_discovery_are_understood(discrete: str, memory: int) -> None:
    known = {"Discrete": discrete, "DxgiVideoMemory": "8192 MB", "DxgiAdapterNumber": "1", "Description": "A card"}
    found = _Named(ep_name="Dml", ep_metadata={}, device=_Named(type=_Named(name="GPU"), vendor="x", metadata=known))
    assert from_ort(found, 0) == Device("A card", "GPU", 1, discrete == "1", memory, "", "Dml")


def test_a_small_card_gets_a_leaner_plan(sd1_bundle: Path) -> None:
    bundle = open_bundle(sd1_bundle)
    needs = estimate(bundle, banded=False)
    plan, note = choose_plan("auto", bundle, (needs["resident"] + needs["sequential"]) // 2 * 10 // 9)
    assert plan == "sequential"
    assert note.startswith("memory: the device has")
    assert choose_plan("auto", bundle, 80 << 30) == choose_plan("auto", bundle)


def test_the_cpu_continues_where_the_provider_that_auto_selected_fails(sd1_bundle: Path) -> None:
    if "AzureExecutionProvider" not in ort_library.included():
        pytest.skip("this onnxruntime has no second provider")
    # It exists, and runs no operator of the model.
    broken = replace(TABLE["cpu"], name="broken", execution_provider="AzureExecutionProvider", fallback=TABLE["cpu"])
    bundle = open_bundle(sd1_bundle)
    feeds = {"input_ids": np.zeros((1, 8), np.int64)}
    components = Components(bundle, broken, "resident", SessionOptions())
    result = components.run("text_encoder", feeds)
    expected = Components(bundle, TABLE["cpu"], "resident", SessionOptions()).run("text_encoder", feeds)
    assert all(np.array_equal(result[name], expected[name]) for name in expected)
    assert components.provider == TABLE["cpu"]
    assert components.notes()[0].startswith("broken failed, so cpu continued: ")
    with pytest.raises(ProviderError):
        Components(bundle, replace(broken, fallback=None), "resident", SessionOptions()).run("text_encoder", feeds)
