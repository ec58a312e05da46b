"""The devices of a provider: processors, graphics cards and neural units that it can compute on, the best one first."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec

from . import hardware

Kind = Literal["GPU", "NPU", "CPU"]


class Device(msgspec.Struct, frozen=True):
    """A device."""

    name: str
    kind: Kind
    id: int = 0
    """The provider's own number of it."""
    discrete: bool | None = None
    """Whether a GPU is a card with memory of its own; None if unknown."""
    memory: int = 0
    """Bytes of its own memory; 0 if it has none or they are unknown."""
    driver: str = ""
    through: str = ""
    """ORT's name of the execution provider that computes on it."""

    def described(self) -> str:
        """Return its name, kind, memory and driver, for people."""
        kind = self.kind if self.discrete is None else f"{'discrete' if self.discrete else 'integrated'} {self.kind}"
        memory = f", {self.memory / 2**30:.1f} GiB" if self.memory else ""
        return f"{self.name}, {kind}{memory}{f', driver {self.driver}' if self.driver else ''}"


def ranked(found: Sequence[tuple[Device, Any]]) -> list[tuple[Device, Any]]:
    """Sort pairs of a device and anything: discrete GPUs, other GPUs, CPUs, then NPUs; the largest memory first among equals."""
    order = {"GPU": 1, "CPU": 2, "NPU": 3}
    return sorted(found, key=lambda pair: (0 if pair[0].discrete else order[pair[0].kind], -pair[0].memory, pair[0].id))


def from_ort(device: Any, number: int) -> Device:
    """Describe ORT's OrtEpDevice, the provider's `number`-th. Names of facts are those of ORT's device discovery and of OpenVINO."""
    own: Mapping[str, str] = dict(device.ep_metadata)
    known: Mapping[str, str] = dict(device.device.metadata)
    kind: Kind = device.device.type.name
    discrete = {"1": True, "0": False}.get(known.get("Discrete", "")) if kind == "GPU" else None
    memory = _bytes(own.get("GPU_DEVICE_TOTAL_MEM_SIZE", "")) or _bytes(known.get("DxgiVideoMemory", ""))
    vendor = " ".join(f"{device.device.vendor} {kind}".split())
    name = own.get("FULL_DEVICE_NAME") or known.get("Description") or (hardware.processor() if kind == "CPU" else vendor)
    place = known.get("DxgiAdapterNumber", str(number))
    return Device(name.strip(), kind, int(place) if place.isdigit() else number, discrete, memory if discrete else 0, "", device.ep_name)


_UNITS = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def _bytes(text: str) -> int:
    """Return the bytes in a text such as `8192 MB`; 0 if it is none."""
    found = re.fullmatch(r"(\d+) ?(B|KB|MB|GB|)", text.strip())
    return int(found[1]) * _UNITS[found[2]] if found else 0


def cuda_driver() -> Any:
    """Return the library of NVIDIA's driver; None if there is none."""
    with suppress(OSError):
        return ctypes.WinDLL("nvcuda.dll") if sys.platform == "win32" else ctypes.CDLL("libcuda.so.1")
    return None


_INTEGRATED, _NO_DEVICE = 18, 100
"""CU_DEVICE_ATTRIBUTE_INTEGRATED and CUDA_ERROR_NO_DEVICE of the CUDA driver API (cuda.h)."""


def cuda_devices(driver: Any) -> list[Device]:
    """Return the cards that the CUDA `driver` (`cuda_driver`) sees, in CUDA's order; empty if it cannot start."""
    count, version = ctypes.c_int(), ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    driver.cuDriverGetVersion(ctypes.byref(version))
    found: list[Device] = []
    for number in range(count.value):
        card, integrated = ctypes.c_int(), ctypes.c_int()
        name, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
        failed = driver.cuDeviceGet(ctypes.byref(card), number) or driver.cuDeviceGetName(name, 256, card)
        if failed or driver.cuDeviceTotalMem_v2(ctypes.byref(size), card):
            continue
        driver.cuDeviceGetAttribute(ctypes.byref(integrated), _INTEGRATED, card)
        discrete = not integrated.value
        supports = f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        found.append(Device(name.value.decode("utf-8", "replace"), "GPU", number, discrete, size.value if discrete else 0, supports))
    return found
