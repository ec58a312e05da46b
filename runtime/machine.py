"""What this machine is: processor, instructions that matter here, cores, memory."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path
from typing import Any

_NAMES = {"avx512_vnni": "vnni", "avx512_bf16": "bf16", "amx_tile": "amx", "asimd": "neon", "asimddp": "dotprod"}
"""Linux's names of what matters → the short ones; the rest are the same."""
_WANTED = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx_vnni",
    "vnni",
    "bf16",
    "amx",
    "amx_int8",
    "amx_bf16",
    "neon",
    "dotprod",
    "i8mm",
)
_WINDOWS = {40: "avx2", 41: "avx512f", 43: "dotprod"}
"""Arguments of IsProcessorFeaturePresent (winnt.h)."""
_APPLE = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "vnni",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}


@functools.cache
def processor() -> str:
    """Its name, as its maker writes it."""
    if sys.platform == "linux":
        for name, value in _cpuinfo():
            if name in {"model name", "Model", "Hardware"}:
                return value
    return platform.processor() or platform.machine()


@functools.cache
def flags() -> tuple[str, ...]:
    """Instruction sets that decide how fast pictures come: vector units, int8 dot products, bfloat16, matrix tiles."""
    found: set[str] = set()
    if sys.platform == "linux":
        for name, value in _cpuinfo():
            if name in {"flags", "Features"}:
                found = {_NAMES.get(flag, flag) for flag in value.split()}
                break
    elif sys.platform == "win32":
        kernel: Any = vars(ctypes)["windll"].kernel32  # only there is such a name
        found = {name for number, name in _WINDOWS.items() if kernel.IsProcessorFeaturePresent(number)}
    elif sys.platform == "darwin":
        import subprocess  # only here

        done = subprocess.run(["/usr/sbin/sysctl", "-a"], capture_output=True, text=True, check=False)
        found = {name for key, name in _APPLE.items() if f"{key}: 1" in done.stdout}
    return tuple(name for name in _WANTED if name in found)


def saturates() -> bool:
    """Whether 8-bit products may overflow here: x86 processors without VNNI sum pairs of them in 16 bits, which clamp.

    True where the system does not say, as on Windows.
    """
    return platform.machine().lower() in {"x86_64", "amd64"} and not {"vnni", "avx_vnni"} & set(flags())


def cores() -> int:
    """Cores that this process may use: on Linux its affinity and the quota of its control group (containers) count."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    found = len(os.sched_getaffinity(0))
    for group in _control_groups():
        try:
            quota, period = (group / "cpu.max").read_text().split()
            found = min(found, max(1, round(int(quota) / int(period))))
        except (OSError, ValueError):  # no quota here ("max")
            continue
    return found


def fewer_cores() -> int:
    """`cores()` where the process may use only some of the machine's, else 0: then a library's own choice is the best."""
    found = cores()
    return found if found < (os.cpu_count() or 1) else 0


def memory() -> tuple[int, int] | None:
    """(bytes that could be taken now without swapping, bytes in all); none where the system does not say.

    On Linux a limit of the control group (containers) counts.
    """
    if sys.platform == "linux":
        return _memory_linux()
    if sys.platform == "win32":
        return _memory_windows()
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return (pages * size // 2, pages * size)  # macOS compresses and evicts: half is a fair guess


def give_memory_back() -> None:
    """Return memory that was freed to the system. The C library of Linux keeps tens of megabytes of it unless it is asked."""
    if sys.platform == "linux":
        trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


def _memory_linux() -> tuple[int, int] | None:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return None
    for group in _control_groups():
        try:
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
        except (OSError, ValueError):  # no limit here ("max")
            continue
        free, total = min(free, max(limit - used, 0)), min(total, limit)
    return free, total


def _control_groups() -> list[Path]:
    """The control groups (version 2) that this process is in, from its own to the root."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::/")[2]
    except OSError:
        return []
    path = Path("/sys/fs/cgroup") / own
    return [path, *path.parents][: len(Path(own).parts) + 1]


def _memory_windows() -> tuple[int, int] | None:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong), *((name, ctypes.c_ulonglong) for name in _STATUS)]

    status = Status()
    status.length = ctypes.sizeof(Status)
    kernel: Any = vars(ctypes)["windll"].kernel32  # only there is such a name
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.free), int(status.total)


_STATUS = ("total", "free", "total_page", "free_page", "total_virtual", "free_virtual", "extended")
"""Fields of MEMORYSTATUSEX (sysinfoapi.h)."""


@functools.cache
def _cpuinfo() -> tuple[tuple[str, str], ...]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ()
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return tuple((name.strip(), value.strip()) for name, _, value in pairs)
