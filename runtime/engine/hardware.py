"""Facts about this machine: processor, relevant instruction sets, cores, memory."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import cpuid

_NAMES = {"avx512_vnni": "vnni", "avx512_bf16": "bf16", "amx_tile": "amx", "asimd": "neon", "asimddp": "dotprod"}
"""Linux's names of instruction sets → short names; the others are unchanged."""
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
_WINDOWS = {38: "sse4_2", 39: "avx", 40: "avx2", 41: "avx512f", 19: "neon", 43: "dotprod", 66: "i8mm"}
"""Arguments of IsProcessorFeaturePresent (winnt.h). It knows no VNNI, so `cpuid` asks the processor."""
_APPLE = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "vnni",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}


@functools.cache
def processor() -> str:
    """Return the processor's name as reported by its manufacturer."""
    if sys.platform == "linux":
        for name, value in _cpuinfo():
            if name in {"model name", "Model", "Hardware"}:
                return value
    return platform.processor() or platform.machine()


@functools.cache
def flags() -> tuple[str, ...]:
    """Return the instruction sets that affect speed: vector units, int8 dot products, bfloat16, matrix tiles."""
    found: set[str] = set()
    if sys.platform == "linux":
        for name, value in _cpuinfo():
            if name in {"flags", "Features"}:
                found = {_NAMES.get(flag, flag) for flag in value.split()}
                break
    elif sys.platform == "win32":
        kernel: Any = vars(ctypes)["windll"].kernel32  # exists on Windows only
        found = {name for number, name in _WINDOWS.items() if kernel.IsProcessorFeaturePresent(number)}
        found |= cpuid.flags(avx512="avx512f" in found)
    elif sys.platform == "darwin":
        import subprocess  # needed on this system only

        done = subprocess.run(["/usr/sbin/sysctl", "-a"], capture_output=True, text=True, check=False)
        found = {name for key, name in _APPLE.items() if f"{key}: 1" in done.stdout}
    return tuple(name for name in _WANTED if name in found)


def saturates() -> bool:
    """Whether int8 products can saturate: x86 processors without VNNI sum pairs of products in 16 bits.

    True if the system does not report VNNI.
    """
    return platform.machine().lower() in {"x86_64", "amd64"} and not {"vnni", "avx_vnni"} & set(flags())


def most_threads() -> int:
    """Return the largest number of threads that is accepted: threads spin while they wait, so many more than cores only block them."""
    return max(64, 4 * (os.cpu_count() or 1))


def cores() -> int:
    """Return the number of cores that this process may use: on Linux, its affinity and the quota of its control group (containers)."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    found = len(os.sched_getaffinity(0))
    for group in _control_groups("cpu"):
        with suppress(OSError, ValueError):  # no quota here ("max")
            quota, period = _numbers(group, ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
            found = min(found, max(1, round(quota / period))) if quota > 0 else found
    return found


def fewer_cores() -> int:
    """Return `cores()` if the process may use only some of the machine's cores; otherwise 0, which leaves the choice to the library."""
    found = cores()
    return found if found < (os.cpu_count() or 1) else 0


def memory() -> tuple[int, int] | None:
    """Return (bytes available without swapping, total bytes); None if the system does not report them.

    On Linux the limit of the control group (containers) counts.
    """
    if sys.platform == "linux":
        return _memory_linux()
    if sys.platform == "win32":
        return _memory_windows()
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return (pages * size // 2, pages * size)  # macOS compresses and evicts: half is a fair guess


def give_memory_back() -> None:
    """Return freed memory to the system; the C library of Linux otherwise keeps tens of megabytes."""
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
    for group in _control_groups("memory"):
        with suppress(OSError, ValueError):  # no limit here ("max")
            limit, used = _numbers(group, ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
            free, total = min(free, max(limit - used, 0)), min(total, limit)
    return free, total


_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def _numbers(group: Path, version_2: tuple[str, ...], version_1: tuple[str, ...]) -> tuple[int, int]:
    """Return the two numbers in the files of a control group, which have other names in each version."""
    names = version_2 if (group / version_2[0]).exists() else version_1
    first, second = (int(word) for name in names for word in (group / name).read_text().split())
    return first, second


def _control_groups(controller: str) -> list[Path]:
    """Return the control groups of this process that `controller` limits, from its own to the root.

    Version 2 has one hierarchy, written `0::/own`; version 1 has one for each controller, written `4:memory:/own`.
    """
    try:
        lines = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return []
    found: list[Path] = []
    for _, controllers, own in (line for line in lines if len(line) == 3):
        if not controllers or controller in controllers.split(","):
            root = _GROUPS / (controller if controllers else "")
            path = root / own.lstrip("/")
            found += [path, *path.parents][: len(path.parts) - len(root.parts) + 1]
    return found


def _memory_windows() -> tuple[int, int] | None:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong), *((name, ctypes.c_ulonglong) for name in _STATUS)]

    status = Status()
    status.length = ctypes.sizeof(Status)
    kernel: Any = vars(ctypes)["windll"].kernel32  # exists on Windows only
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
