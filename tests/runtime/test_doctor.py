"""The report of `diffusette doctor` is correct."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil
import pytest

from diffusette.runtime import doctor
from diffusette.runtime.engine import graph_cache, hardware, providers


def test_the_report_matches_this_machine(tmp_path: Path) -> None:
    found = doctor.report(tmp_path / "cache")
    assert found.machine.python == platform.python_version()
    assert 1 <= found.machine.cores <= psutil.cpu_count()
    assert found.packages["numpy"] == version("numpy")
    assert found.onnxruntime == providers.distributions()
    assert found.providers["cpu"].available
    assert found.providers["cpu"].missing == ""
    assert found.cache == doctor.Cache(str(tmp_path / "cache"), writable=True, megabytes=0)
    assert found.telemetry == providers.telemetry()
    for name, state in found.providers.items():
        assert state.available == (providers.why_missing(providers.TABLE[name]) == "")


def test_the_report_is_encoded_as_json(tmp_path: Path) -> None:
    found = doctor.report(tmp_path)
    assert msgspec.json.decode(msgspec.json.encode(found), type=doctor.Doctor) == found


def test_the_size_of_the_cache_is_reported(tmp_path: Path) -> None:
    def make(copy: Path) -> None:
        with copy.open("wb") as file:
            file.truncate(5 << 20)

    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/model.onnx").touch()
    assert graph_cache.get(tmp_path / "cache", tmp_path / "bundle/model.onnx", (), make)[0] is not None
    assert doctor.report(tmp_path / "cache").cache.megabytes == 5


def test_an_unwritable_cache_is_reported_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = doctor.report(tmp_path / "file/cache")
    assert not found.cache.writable
    assert any("set DIFFUSETTE_CACHE to another folder" in problem for problem in found.problems)


@pytest.mark.skipif(platform.system() != "Linux", reason="compares with Linux's own words")
def test_processor_and_memory_are_those_of_the_system() -> None:
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    assert ("avx2" in hardware.flags()) == ("avx2" in flags)
    assert ("vnni" in hardware.flags()) == ("avx512_vnni" in flags)
    memory = hardware.memory()
    assert memory is not None
    free, total = memory
    assert 0 < free <= total <= psutil.virtual_memory().total
