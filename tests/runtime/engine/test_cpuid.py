"""The instruction CPUID, as Windows is asked for instruction sets: the very bytes, run here by way of a change of calling convention."""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from pathlib import Path

import pytest

from diffusette.runtime.engine import cpuid

FROM_SYSTEM_V = bytes.fromhex("4889f9 4989d0 4889f2")
"""mov rcx, rdi; mov r8, rdx; mov rdx, rsi: Linux's first three arguments become those of Windows."""


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="compares with Linux's /proc/cpuinfo")
def test_the_code_for_windows_finds_what_linux_says_of_this_processor() -> None:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(FROM_SYSTEM_V + cpuid.CODE)
    said = set(next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split())
    names = {"vnni": "avx512_vnni", "avx_vnni": "avx_vnni", "bf16": "avx512_bf16"}
    query = cpuid.function(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    found = cpuid.read(query, avx512="avx512f" in said)
    assert query(0, 0)[0] >= 7
    assert {name for name, theirs in names.items() if theirs in said} == found & names.keys()


def test_avx_512_counts_only_where_the_system_saves_its_registers() -> None:
    leaves = {(0, 0): (20, 0, 0, 0), (7, 0): (1, 0, 1 << 11, 3 << 24), (7, 1): (1 << 4 | 1 << 5, 0, 0, 0)}
    assert cpuid.read(lambda leaf, sub: leaves[leaf, sub], avx512=True) == {"vnni", "amx", "amx_int8", "avx_vnni", "bf16"}
    assert cpuid.read(lambda leaf, sub: leaves[leaf, sub], avx512=False) == {"amx", "amx_int8", "avx_vnni"}


def test_an_old_processor_without_leaf_7_has_none_of_them() -> None:
    assert cpuid.read(lambda *_: (4, 0, 0, 0), avx512=True) == set()
