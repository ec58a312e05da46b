"""Ask an x86-64 processor on Windows for instruction sets that the system does not report: VNNI, bfloat16, AMX.

Windows has no call for them, so the instruction CPUID itself runs, in a page of 4096 bytes. Not yet run on Windows; the same bytes run in
the tests on Linux.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

CODE = bytes.fromhex("53 89c8 89d1 0fa2 418900 41895804 41894808 4189500c 5b c3")
"""push rbx; mov eax, ecx; mov ecx, edx; cpuid; mov [r8], eax; mov [r8+4], ebx; mov [r8+8], ecx; mov [r8+12], edx; pop rbx; ret.

A function (leaf, subleaf, uint32[4]) in Microsoft's calling convention for x64."""

_LEAF_7 = ((0, 2, 11, "vnni"), (0, 3, 24, "amx"), (0, 3, 25, "amx_int8"), (0, 3, 22, "amx_bf16"), (1, 0, 4, "avx_vnni"), (1, 0, 5, "bf16"))
"""Subleaf, register, bit and name of the features in leaf 7 (Intel's manual, volume 2A, CPUID)."""
_NEED_AVX512 = frozenset({"vnni", "bf16"})
_COMMIT_AND_RESERVE, _READ_WRITE, _EXECUTE_READ, _RELEASE = 0x3000, 0x04, 0x20, 0x8000
"""Constants of VirtualAlloc, VirtualProtect and VirtualFree (memoryapi.h)."""


def flags(*, avx512: bool) -> set[str]:
    """Return the instruction sets that the processor has; `avx512` says whether the system saves AVX-512's registers.

    Empty on other processors, and where the system does not let a program make code.
    """
    if platform.machine().lower() not in {"amd64", "x86_64"} or sys.maxsize < 2**32:
        return set()
    try:
        query, free = _loaded()
    except OSError:
        return set()
    try:
        return read(query, avx512=avx512)
    finally:
        free()


def read(query: Callable[[int, int], Registers], *, avx512: bool) -> set[str]:
    """Return the names of `_LEAF_7` whose bits are set in what `query` (leaf, subleaf) gives."""
    if query(0, 0)[0] < 7:
        return set()
    leaves = [query(7, 0)]
    leaves.append(query(7, 1) if leaves[0][0] >= 1 else (0, 0, 0, 0))
    found = {name for subleaf, register, bit, name in _LEAF_7 if leaves[subleaf][register] >> bit & 1}
    return found if avx512 else found - _NEED_AVX512


def function(address: int) -> Callable[[int, int], Registers]:
    """Return the function of `CODE` at an `address` in memory that may run."""
    call: Any = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)

    def query(leaf: int, subleaf: int) -> Registers:
        registers = (ctypes.c_uint32 * 4)()
        call(leaf, subleaf, ctypes.addressof(registers))
        first, second, third, fourth = registers
        return first, second, third, fourth

    return query


def _loaded() -> tuple[Callable[[int, int], Registers], Callable[[], Any]]:
    """Return the query, and what frees its memory. The page is written first and made executable then, never both at once."""
    kernel: Any = vars(ctypes)["WinDLL"]("kernel32")  # exists on Windows only
    kernel.VirtualAlloc.restype = ctypes.c_void_p
    kernel.VirtualAlloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint32]
    kernel.VirtualProtect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p]
    kernel.VirtualFree.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32]
    page = kernel.VirtualAlloc(None, 4096, _COMMIT_AND_RESERVE, _READ_WRITE)
    if not page:
        raise OSError("no memory for CPUID; the instruction sets stay unknown")
    ctypes.memmove(page, CODE, len(CODE))
    if not kernel.VirtualProtect(page, 4096, _EXECUTE_READ, ctypes.byref(ctypes.c_uint32())):
        kernel.VirtualFree(page, 0, _RELEASE)
        raise OSError("the system lets this program make no code; the instruction sets stay unknown")
    return function(page), lambda: kernel.VirtualFree(page, 0, _RELEASE)
