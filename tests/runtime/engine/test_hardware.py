"""Limits of a container count as the machine's, under both versions of control groups."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from diffusette.runtime.engine import hardware

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
MEMORY = {
    1: {"memory/box/memory.limit_in_bytes": "1000000", "memory/box/memory.usage_in_bytes": "400000"},
    2: {"box/memory.max": "1000000", "box/memory.current": "400000"},
}
QUOTA = {1: {"cpu/box/cpu.cfs_quota_us": "100000", "cpu/box/cpu.cfs_period_us": "100000"}, 2: {"box/cpu.max": "100000 100000"}}
NONE = {
    1: {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "400000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    },
    2: {"box/memory.max": "max", "box/memory.current": "400000", "box/cpu.max": "max 100000"},
}
OWN = {1: "7:memory:/box/inner\n6:cpu,cpuacct:/box/inner\n1:name=systemd:/box\n0::/elsewhere\n", 2: "0::/box/inner\n"}


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    (tmp_path / "own").write_text(OWN[request.param])
    monkeypatch.setattr(hardware, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(hardware, "_GROUPS", tmp_path / "groups")
    return request.param


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text + "\n")


def test_the_memory_limit_of_an_outer_group_counts(version: int, tmp_path: Path) -> None:
    write(tmp_path, MEMORY[version])
    assert hardware.memory() == (600_000, 1_000_000)


def test_the_quota_of_an_outer_group_counts(version: int, tmp_path: Path) -> None:
    write(tmp_path, QUOTA[version])
    assert hardware.cores() == 1


def test_a_group_without_limits_changes_nothing(version: int, tmp_path: Path) -> None:
    bare = (hardware.memory() or (0, 0))[1]
    write(tmp_path, NONE[version])
    assert (hardware.memory() or (0, 0))[1] == bare
    assert hardware.cores() == len(os.sched_getaffinity(0))
