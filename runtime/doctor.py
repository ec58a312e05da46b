"""What `diffusette doctor` says: the machine, what is installed, what can run here, and what is wrong."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import msgspec

from ..models.errors import ProviderError
from . import graph_cache, machine, providers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PACKAGES = ("diffusette", "numpy", "pillow", "click", "msgspec", "tokenizers", "rich")
"""What the runtime stands on; onnxruntime is reported apart, since several wheels bring it."""
_ENOUGH = 2 << 30


class Machine(msgspec.Struct, frozen=True):
    """The computer. Memory is in bytes; `free_memory` is what could be taken now without swapping."""

    system: str
    python: str
    processor: str
    cores: int
    """Those that this process may use."""
    flags: tuple[str, ...]
    free_memory: int | None
    total_memory: int | None


class ProviderState(msgspec.Struct, frozen=True):
    """Whether a provider can run here; `missing` says why not and what to install."""

    available: bool
    targets: tuple[str, ...]
    devices: tuple[str, ...] = ()
    missing: str = ""


class Cache(msgspec.Struct, frozen=True):
    """Where optimized graphs are kept; `problem` says why they cannot be."""

    folder: str | None
    writable: bool
    megabytes: int
    """What the graphs in it take; `graph_cache.LIMIT` is the most."""
    problem: str = ""


class Doctor(msgspec.Struct, frozen=True):
    """Everything that helps to understand why something does not work."""

    machine: Machine
    packages: dict[str, str]
    """Name → version of what the runtime needs; empty where it is not installed."""
    onnxruntime: dict[str, str]
    """Name → version of every distribution that brings onnxruntime; there must be one."""
    providers: dict[str, ProviderState]
    cache: Cache
    telemetry: bool
    """Whether ONNX Runtime may collect usage data in this process."""
    problems: list[str]
    """What keeps pictures from coming, or makes them slower than they could be, each with its cure."""


def report(cache: Path | None = None) -> Doctor:
    """Look at everything; nothing is changed but for the cache folder (`cache`, or the usual one), which is made."""
    found = providers.distributions()
    states = _providers()
    packages = installed_packages()
    memory = machine.memory()
    folder = cache or graph_cache.default_folder()
    unwritable = graph_cache.why_unwritable(folder)
    problems = [f"{name} is not installed: pip install {name}" for name, installed in packages.items() if not installed]
    clash = providers.why_clashing(found)
    if clash:
        problems.append(clash)
    elif not any(state.available for state in states.values()):
        problems.append(states["cpu"].missing)
    if unwritable:
        problems.append(f"optimized graphs are not kept, so that every start takes as long as the first: {unwritable}")
    if memory is not None and memory[0] < _ENOUGH:
        problems.append(f"only {memory[0] >> 20} MiB of memory are free: close other programs, or use --memory streamed")
    if platform.machine().lower() in {"x86_64", "amd64"} and "avx2" not in machine.flags() and sys.platform == "linux":
        problems.append("this processor has no AVX2: pictures take several times as long as on one that has it")
    return Doctor(
        machine=this_machine(),
        packages=packages,
        onnxruntime=found,
        providers=states,
        cache=Cache(str(folder) if folder else None, not unwritable, (graph_cache.size(folder) if folder else 0) >> 20, unwritable),
        telemetry=providers.telemetry(),
        problems=problems,
    )


def this_machine() -> Machine:
    """The computer as it is now."""
    memory = machine.memory()
    return Machine(
        system=platform.platform(),
        python=platform.python_version(),
        processor=machine.processor(),
        cores=machine.cores(),
        flags=machine.flags(),
        free_memory=memory and memory[0],
        total_memory=memory and memory[1],
    )


def installed_packages() -> dict[str, str]:
    """Name → version of `PACKAGES`; empty where one is not installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _providers() -> dict[str, ProviderState]:
    states: dict[str, ProviderState] = {}
    for name, provider in providers.TABLE.items():
        try:
            missing = providers.why_missing(provider)
            devices = () if missing or not provider.plugin else _devices(provider)
        except ProviderError as error:
            missing, devices = str(error), ()
        states[name] = ProviderState(not missing, provider.targets, devices, missing)
    return states


def _devices(provider: providers.Provider) -> tuple[str, ...]:
    named: list[str] = []
    for device in providers.plugin_devices(provider):
        metadata: Mapping[str, str] = device.ep_metadata
        named.append(metadata.get("FULL_DEVICE_NAME") or f"{device.device.vendor} {device.device.type.name}")
    return tuple(named)
