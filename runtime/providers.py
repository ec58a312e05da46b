"""Execution providers: the one table of what can run a graph, what to install for it, and how it wants to be set up.

This file and session.py are the only ones that name onnxruntime. It is imported late, by `onnxruntime()`, so that
importing the runtime stays cheap and a clash of its wheels is told before it does harm.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..models.errors import ProviderError
from ..models.manifest import Target

AUTO = "auto"


@dataclass(frozen=True)
class Provider:
    """A way to run a graph. The fields are what ORT and the provider's makers ask for; `TABLE` says why."""

    name: str
    execution_provider: str
    """ORT's name of it."""
    install: str
    """What to give to pip."""
    targets: tuple[Target, ...]
    """Graphs that it runs, by the manifest's target; the best first."""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Provider options, in ORT's own names."""
    plugin: str | None = None
    """Module of a plug-in wheel that sits on the CPU wheel; not needed where ONNX Runtime's own wheel has the provider (`built_in`)."""
    whole: bool = True
    """Whether a single node left to the CPU is an error. The others leave shape arithmetic to the CPU on purpose: there
    only a node that does real work on the CPU is one."""
    fixed_shapes: bool = False
    """Free dimensions are to be given when the session is opened: every one, unless it is a `compiler`."""
    memory_pattern: bool = True
    """Plan memory ahead for shapes that were seen before."""
    one_run_at_a_time: bool = False
    graph_cache: bool = False
    """Whether ORT can write the optimized graph to a file and read it again; those that compile graphs cannot."""
    exact_sums: bool = False
    """Multiply 8-bit numbers another way where `machine.saturates`."""
    compiler: bool = False
    """It rewrites graphs itself, and recognizes them best as they were exported: ORT is to leave them alone."""
    device: str | None = None
    """ORT's name of the memory in which inputs that stay the same are kept between runs; none where it is the CPU's."""
    note: str = ""
    """What `auto` passed over, and why; empty where the provider was asked for by name."""


TABLE: Mapping[str, Provider] = MappingProxyType(
    {
        provider.name: provider
        for provider in (
            Provider(
                "cuda",
                "CUDAExecutionProvider",
                "diffusette[cuda]",
                ("cuda", "portable"),
                options=MappingProxyType(
                    {
                        "arena_extend_strategy": "kSameAsRequested",  # doubling wastes up to half of a small card
                        "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive search takes gigabytes and minutes
                        "cudnn_conv_use_max_workspace": "1",  # off it saves memory, but the fast convolutions need it
                        "prefer_nhwc": "1",  # tensor cores want channels last; saves a transpose around each convolution
                        "enable_skip_layer_norm_strict_mode": "1",  # sums in float32: in half they cost accuracy layer by layer
                        "use_tf32": "1",  # as many mantissa bits as fp16, which is what the graphs are made for
                    }
                ),
                whole=False,
                graph_cache=True,
                device="cuda",
            ),
            Provider(
                "directml",
                "DmlExecutionProvider",
                "diffusette[directml]",
                ("directml", "portable"),
                whole=False,
                fixed_shapes=True,  # free dimensions end in error 80070057, or in a slow path
                memory_pattern=False,  # its documentation demands it off
                one_run_at_a_time=True,  # likewise: one Run at a time for each session
                device="dml",
            ),
            Provider(
                "openvino",
                "OpenVINOExecutionProvider",
                "diffusette[openvino]",
                ("openvino", "portable"),
                plugin="onnxruntime_ep_openvino",  # whole: a graph cut in pieces is slower than the CPU provider
                fixed_shapes=True,  # free dimensions cost it time, and memory for each size that it has seen
                compiler=True,  # after ORT's rewriting it runs most of what is meant for 8 bit in 16
            ),
            Provider(
                "webgpu",
                "WebGpuExecutionProvider",
                "diffusette[webgpu]",
                ("portable",),
                plugin="onnxruntime_ep_webgpu",
                whole=False,
                one_run_at_a_time=True,  # one command queue for the device
            ),
            Provider(
                "cpu",
                "CPUExecutionProvider",
                "diffusette[cpu]",
                ("cpu", "portable"),
                memory_pattern=False,  # it takes memory for a whole run at once, beside what the first run took; no faster
                graph_cache=True,
                exact_sums=True,  # full-range 8-bit weights ruin what clamps; costs about a seventh of the time there
            ),
        )
    }
)
_AUTOMATIC = ("cuda", "directml", "openvino", "cpu")
"""What `auto` tries, in this order. WebGPU is young: it has to be asked for."""


def resolve(name: str, target: Target | None = None) -> Provider:
    """The provider called `name`, there and able to run graphs made for `target`.

    `auto` gives the best that this machine has and that runs `target`; its `note` says what was passed over.

    Raises:
        ProviderError: an unknown name, a provider that is not there (with what to install), or one that does not run `target`.
    """
    if name == AUTO:
        return _automatic(target)
    provider = TABLE.get(name)
    if provider is None:
        raise ProviderError(f"no provider is called {name!r}: choose one of {AUTO}, {', '.join(TABLE)}")
    if target is not None and target not in provider.targets:
        able = [other.name for other in TABLE.values() if target in other.targets]
        raise ProviderError(
            f"this bundle was made for {target!r}, but the provider {name!r} runs {' and '.join(map(repr, provider.targets))}: "
            f"use --provider {' or '.join(able)}, or export with --target {provider.targets[0]}"
        )
    missing = why_missing(provider)
    if missing:
        raise ProviderError(missing)
    return provider


def _automatic(target: Target | None) -> Provider:
    passed: list[str] = []
    missing: list[str] = []
    for name in _AUTOMATIC:
        provider = TABLE[name]
        if target is not None and target not in provider.targets:
            if not why_missing(provider):
                passed.append(f"{name} is there, but this bundle was made for {target!r}: export it with --target {provider.targets[0]}")
            continue
        why = why_missing(provider)
        if not why:
            return replace(provider, note="; ".join(passed))
        passed.append(f"{name} is not there")
        missing.append(why)
    raise ProviderError(f"nothing here can run a bundle made for {target!r}: {'; '.join(missing)}")


def why_missing(provider: Provider) -> str:
    """Why `provider` cannot run here, with what to install; empty when it can.

    Raises:
        ProviderError: there is no onnxruntime at all, or two clash.
    """
    if built_in(provider):
        return ""
    if provider.plugin is not None:
        return _why_plugin_missing(provider, provider.plugin)
    if provider.name == "directml" and sys.platform != "win32":
        return "directml is not there: it exists on Windows alone"
    owner = " ".join(distributions()) or "onnxruntime"
    return f'{provider.name} is not in the installed {owner}: pip uninstall -y {owner}, then pip install "{provider.install}"'


def _why_plugin_missing(provider: Provider, module: str) -> str:
    if find_spec(module) is None:
        return f'{provider.name} is not installed: pip install "{provider.install}"'
    try:
        devices = plugin_devices(provider)
    except ProviderError as error:
        return str(error)
    if devices:
        return ""
    problem = f"{provider.name} is installed, but its plug-in knows no device of this machine"
    if provider.name != "openvino":
        return f"{problem}: use another provider"
    return (
        f"{problem}, since it takes Intel's alone; OpenVINO itself runs on others too: "
        f"pip uninstall -y onnxruntime {module.replace('_', '-')}, then pip install onnxruntime-openvino"
    )


def built_in(provider: Provider) -> bool:
    """Whether the installed onnxruntime has `provider` without a plug-in."""
    return provider.execution_provider in onnxruntime().get_available_providers()


def plugin_devices(provider: Provider) -> list[Any]:
    """The devices (ORT's OrtEpDevice) that the plug-in of `provider` offers, GPUs first; registers the plug-in once. None if built in.

    Raises:
        ProviderError: the plug-in cannot be loaded.
    """
    assert provider.plugin is not None
    ort = onnxruntime()
    if built_in(provider):
        return []
    if provider.plugin not in _registered:
        try:
            library = importlib.import_module(provider.plugin).get_library_path()
            ort.register_execution_provider_library(provider.plugin, library)
        except Exception as error:  # whatever a foreign package raises while it loads
            wheel = provider.plugin.replace("_", "-")
            raise ProviderError(
                f"the plug-in of {provider.name} cannot be loaded ({error}): pip install --force-reinstall {wheel} onnxruntime"
            ) from error
        _registered.add(provider.plugin)
    kinds = ort.OrtHardwareDeviceType
    rank = {kinds.GPU: 0, kinds.CPU: 1, kinds.NPU: 2}
    found = [device for device in ort.get_ep_devices() if device.ep_name == provider.execution_provider]
    return sorted(found, key=lambda device: rank[device.device.type])


_registered: set[str] = set()
"""Plug-ins that this process has given to ORT, which refuses a second time."""


def onnxruntime() -> Any:
    """The module onnxruntime, imported with its telemetry off and its log silent.

    Raises:
        ProviderError: it is not installed, cannot be loaded, or two distributions of it overwrite one another.
    """
    loaded = sys.modules.get("onnxruntime")
    if loaded is not None and hasattr(loaded, "InferenceSession"):
        return loaded
    clash = why_clashing(distributions())
    if clash:
        raise ProviderError(clash)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read while the library loads
    try:
        ort: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ProviderError(
            f'onnxruntime cannot be loaded ({error}): pip install "diffusette[cpu]" (or cuda, directml, openvino)'
        ) from error
    ort.set_default_logger_severity(4)
    return ort


def why_clashing(found: Mapping[str, str]) -> str:
    """What to do when more than one of `distributions()` has written the same module; else empty."""
    if len(found) < 2:
        return ""
    names = " and ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{names} are installed together and overwrite one another's files: pip uninstall -y {' '.join(found)}, "
        f'then one of them: pip install "diffusette[cpu]" (or cuda, directml)'
    )


def distributions(site: Path | None = None) -> dict[str, str]:
    """Name → version of every distribution that has written the package onnxruntime in the folder `site`.

    `site` is where the import system finds onnxruntime, unless given. Lists one folder and reads a few small files:
    importlib.metadata would open every installed package, which takes longer than loading a small model.
    """
    if site is None:
        spec = find_spec("onnxruntime")
        if spec is None or spec.origin is None:
            return {}
        site = Path(spec.origin).parent.parent
    found: dict[str, str] = {}
    for name in sorted(file.name for file in site.iterdir()):
        if name.endswith(".dist-info") and name.lower().startswith(("onnxruntime", "ort")):
            try:
                record = (site / name / "RECORD").read_text("utf-8")
            except OSError:
                continue
            if record.startswith("onnxruntime/__init__.py,") or "\nonnxruntime/__init__.py," in record:
                project, _, version = name.removesuffix(".dist-info").partition("-")
                found[project.replace("_", "-")] = version
    return found


def telemetry() -> bool:
    """Whether ONNX Runtime may collect usage data in this process; false when `onnxruntime()` was the first to import it."""
    return "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") != "1"
