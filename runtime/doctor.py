"""The report of `diffusette doctor`: the machine, the installed packages, the available providers, and problems."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import msgspec

from ..models.errors import ProviderError
from .engine import availability, graph_cache, hardware, providers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PACKAGES = ("diffusette", "numpy", "pillow", "click", "msgspec", "tokenizers", "rich")
"""The packages that the runtime needs. onnxruntime is reported separately, since several wheels provide it."""
OPTIONAL = ("starlette", "uvicorn", "mcp", "c2pa-python")
"""The packages of the server, of MCP and of signatures; none of them is needed to generate images."""
_ENOUGH = 2 << 30


class Machine(msgspec.Struct, frozen=True):
    """The computer. Memory is in bytes; `free_memory` is available without swapping."""

    system: str
    python: str
    processor: str
    cores: int
    """The cores that this process may use."""
    flags: tuple[str, ...]
    free_memory: int | None
    total_memory: int | None


class ProviderState(msgspec.Struct, frozen=True):
    """Whether a provider can run here: it opened a small graph and ran it. `missing` explains why not and what to install."""

    available: bool
    targets: tuple[str, ...]
    """The targets of `diffusette export` whose graphs it runs; the best comes first."""
    devices: tuple[str, ...] = ()
    """The devices, in the order of `--device`."""
    missing: str = ""
    needs: str = ""
    """What it needs besides the packages."""
    legacy: str = ""
    """What its makers recommend instead."""


class Probed(msgspec.Struct, frozen=True):
    """What a provider did with a graph of six convolutions of 128 channels at 64 × 64 and a matrix product, in float32."""

    device: str
    ran: str
    """Where the nodes ran."""
    gflops: float
    """Billions of floating-point operations a second."""
    first: float
    """Seconds to open the graph and run it once."""
    later: float
    """Seconds of the fastest later run."""
    snr_db: float
    """Signal-to-noise ratio against the CPU provider; 200 means equal bits."""
    problem: str = ""


class Cache(msgspec.Struct, frozen=True):
    """The folder of optimized graphs; `problem` explains why it cannot be used."""

    folder: str | None
    writable: bool
    megabytes: int
    """The size of the cached graphs; at most `graph_cache.LIMIT`."""
    problem: str = ""


class Doctor(msgspec.Struct, frozen=True):
    """All the information needed to find out why something does not work."""

    machine: Machine
    packages: dict[str, str]
    """Name → version of `PACKAGES` and `OPTIONAL`; empty if not installed."""
    onnxruntime: dict[str, str]
    """Name → version of every distribution that provides onnxruntime; there must be exactly one."""
    providers: dict[str, ProviderState]
    cache: Cache
    telemetry: bool
    """Whether ONNX Runtime may collect usage data in this process."""
    probed: dict[str, Probed]
    """Results of `--probe`, by provider and device."""
    problems: list[str]
    """Everything that prevents or slows down generation, each with its remedy."""


def report(cache: Path | None = None, *, probe: bool = False) -> Doctor:
    """Examine the machine; with `probe`, measure every available provider, which takes seconds for each.

    Creates the cache folder (`cache`, or the default one), keeps there which providers work, and changes nothing else.
    """
    found = providers.distributions()
    states = _providers()
    packages = installed_packages()
    memory = hardware.memory()
    folder = cache or graph_cache.default_folder()
    unwritable = graph_cache.why_unwritable(folder)
    problems = [f"{name} is not installed: pip install {name}" for name in PACKAGES if not packages[name]]
    clash = providers.why_clashing(found)
    if clash:
        problems.append(clash)
    elif not any(state.available for state in states.values()):
        problems.append(states["cpu"].missing)
    if unwritable:
        problems.append(f"optimized graphs are not cached, so every start is as slow as the first: {unwritable}")
    if memory is not None and memory[0] < _ENOUGH:
        problems.append(f"only {memory[0] >> 20} MiB of memory are free: close other programs, or use --memory streamed")
    if platform.machine().lower() in {"x86_64", "amd64"} and "avx2" not in hardware.flags() and sys.platform == "linux":
        problems.append("this processor has no AVX2: images take several times as long as on a processor with it")
    return Doctor(
        machine=this_machine(),
        packages=packages,
        onnxruntime=found,
        providers=states,
        cache=Cache(str(folder) if folder else None, not unwritable, (graph_cache.size(folder) if folder else 0) >> 20, unwritable),
        telemetry=providers.telemetry(),
        probed=_probed(states) if probe else {},
        problems=problems,
    )


def this_machine() -> Machine:
    """Return the current state of the computer."""
    memory = hardware.memory()
    return Machine(
        system=platform.platform(),
        python=platform.python_version(),
        processor=hardware.processor(),
        cores=hardware.cores(),
        flags=hardware.flags(),
        free_memory=memory and memory[0],
        total_memory=memory and memory[1],
    )


def installed_packages() -> dict[str, str]:
    """Return name → version of `PACKAGES` and `OPTIONAL`; empty if a package is not installed."""
    found: dict[str, str] = {}
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _providers() -> dict[str, ProviderState]:
    states: dict[str, ProviderState] = {}
    for name, provider in providers.TABLE.items():
        try:
            missing = providers.why_missing(provider, again=True)
            devices = () if missing or name == "cpu" else availability.ask(provider).devices
        except ProviderError as error:
            missing, devices = str(error), ()
        listed = tuple(f"{number}: {device.described()}" for number, device in enumerate(devices))
        states[name] = ProviderState(not missing, provider.targets, listed, missing, provider.driver, provider.legacy)
    return states


def _probed(states: Mapping[str, ProviderState]) -> dict[str, Probed]:
    found: dict[str, Probed] = {}
    for name, state in states.items():
        for number in range(max(1, len(state.devices)) if state.available else 0):
            answer = availability.probe(providers.TABLE[name], number, large=True)
            ran = ", ".join(f"{nodes} nodes on {where}" for where, nodes in answer.placement.items()) or "the whole graph on this provider"
            device = state.devices[number].partition(": ")[2] if state.devices else hardware.processor() if name == "cpu" else "default"
            found[name if number == 0 else f"{name} --device {number}"] = Probed(
                device=device,
                ran=ran if answer.works else "nothing",
                gflops=answer.gflops,
                first=round(answer.opened, 4),
                later=round(answer.run, 5),
                snr_db=answer.snr_db,
                problem=answer.why,
            )
    return found
