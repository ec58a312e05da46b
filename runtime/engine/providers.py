"""Execution providers: one table of what can run a graph, what to install for it, and how to set it up.

This file and session.py are the only ones that name onnxruntime. It is imported late, by `onnxruntime()`, so that
importing the runtime stays cheap, and a clash of its wheels is reported before it does harm.
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
from typing import Any, cast

from ...models.errors import ProviderError
from ...models.manifest import Target
from ..request import shown

AUTO = "auto"


@dataclass(frozen=True)
class Provider:
    """An execution provider. The fields follow the documentation of ORT and of the provider."""

    name: str
    execution_provider: str
    """ORT's name of the provider."""
    install: str
    """The package for pip."""
    targets: tuple[Target, ...]
    """The targets in manifests whose graphs it runs; the best comes first."""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Provider options, in ORT's own names."""
    plugin: str | None = None
    """Module of a plug-in wheel that extends the CPU wheel; not needed if the installed onnxruntime includes the provider (`built_in`)."""
    whole: bool = True
    """Whether every node left to the CPU is an error. The other providers leave shape arithmetic to the CPU by design; for them, only
    nodes with heavy computation on the CPU are errors."""
    fixed_shapes: bool = False
    """Pass values for the free dimensions when a session opens: required for all of them, unless the provider is a `compiler`."""
    memory_pattern: bool = True
    """Plan memory ahead for shapes that occurred before."""
    one_run_at_a_time: bool = False
    graph_cache: bool = False
    """Whether ORT can save the optimized graph and load it again; providers that compile graphs cannot."""
    exact_sums: bool = False
    """Use an int8 multiplication that does not saturate if `hardware.saturates`."""
    compiler: bool = False
    """The provider optimizes graphs itself and works best on the exported form, so ORT does not optimize them."""
    device: str | None = None
    """ORT's name of the memory that keeps read-only inputs between runs; None for CPU memory."""
    note: str = ""
    """What `auto` skipped, and why; empty if the provider was named."""


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
                one_run_at_a_time=True,  # required by its documentation, for each session
                device="dml",
            ),
            Provider(
                "openvino",
                "OpenVINOExecutionProvider",
                "diffusette[openvino]",
                ("openvino", "portable"),
                plugin="onnxruntime_ep_openvino",  # whole: a graph split between providers is slower than the CPU provider
                fixed_shapes=True,  # free dimensions cost time, and memory for each size
                compiler=True,  # after ORT's optimizations it runs most int8 operators in 16 bits
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
                memory_pattern=False,  # it allocates a whole run at once, in addition to the first run's memory, and is no faster
                graph_cache=True,
                exact_sums=True,  # full-range int8 weights saturate on such processors; costs about a seventh of the time there
            ),
        )
    }
)
_AUTOMATIC = ("cuda", "directml", "openvino", "cpu")
"""The order in which `auto` tries providers. WebGPU is young, so it has to be named."""


def resolve(name: str, target: Target | None = None) -> Provider:
    """Return the provider `name` if it is available and runs graphs made for `target`.

    `auto` selects the best available one that runs `target`; its `note` says what was skipped.

    Raises:
        ProviderError: an unknown name, a missing provider (with what to install), or one that does not run `target`.
    """
    if isinstance(cast("object", name), str) and name == AUTO:
        return _automatic(target)
    provider = TABLE.get(name) if isinstance(cast("object", name), str) else None
    if provider is None:
        raise ProviderError(f"provider {shown(name)} is not known: choose one of {AUTO}, {', '.join(TABLE)}")
    if target is not None and target not in provider.targets:
        able = [other.name for other in TABLE.values() if target in other.targets]
        raise ProviderError(
            f"this bundle is made for {target!r}, but the provider {name!r} runs {' and '.join(map(repr, provider.targets))}: "
            f"use --provider {' or '.join(able)}, or export with --target {provider.targets[0]}"
        )
    missing = why_missing(provider)
    if missing:
        raise ProviderError(missing)
    return provider


def _automatic(target: Target | None) -> Provider:
    skipped: list[str] = []
    missing: list[str] = []
    for name in _AUTOMATIC:
        provider = TABLE[name]
        if target is not None and target not in provider.targets:
            if not why_missing(provider):
                skipped.append(
                    f"{name} is available, but this bundle is made for {target!r}; export the model with --target {provider.targets[0]}"
                )
            continue
        why = why_missing(provider)
        if not why:
            return replace(provider, note="; ".join(skipped))
        skipped.append(f"{name} is not available")
        missing.append(why)
    raise ProviderError(f"no provider on this machine can run a bundle made for {target!r}: {'; '.join(missing)}")


def why_missing(provider: Provider) -> str:
    """Return why `provider` cannot run here and what to install; empty if it can.

    Raises:
        ProviderError: onnxruntime is missing, or two distributions of it clash.
    """
    if built_in(provider):
        return ""
    if provider.plugin is not None:
        return _why_plugin_missing(provider, provider.plugin)
    if provider.name == "directml" and sys.platform != "win32":
        return "directml is missing: it exists on Windows only"
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
    problem = f"{provider.name} is installed, but its plug-in supports no device of this machine"
    if provider.name != "openvino":
        return f"{problem}: use another provider"
    return (
        f"{problem}, since it supports only Intel's; OpenVINO itself runs on others too: "
        f"pip uninstall -y onnxruntime {module.replace('_', '-')}, then pip install onnxruntime-openvino"
    )


def built_in(provider: Provider) -> bool:
    """Whether the installed onnxruntime has `provider` without a plug-in."""
    return provider.execution_provider in onnxruntime().get_available_providers()


def plugin_devices(provider: Provider) -> list[Any]:
    """Return the devices (ORT's OrtEpDevice) of the plug-in of `provider`, GPUs first; empty if built in. Registers the plug-in once.

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
        except Exception as error:  # a plug-in may raise anything while it loads
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
"""Plug-ins that are registered with ORT, which accepts each only once."""


def onnxruntime() -> Any:
    """Return the module onnxruntime, imported with its telemetry off and its log silent.

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
    """Return what to do if several `distributions()` have installed the same module; otherwise empty."""
    if len(found) < 2:
        return ""
    names = " and ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{names} are installed together and overwrite one another's files: pip uninstall -y {' '.join(found)}, "
        f'then one of them: pip install "diffusette[cpu]" (or cuda, directml)'
    )


def distributions(site: Path | None = None) -> dict[str, str]:
    """Return name → version of every distribution that installed the package onnxruntime in the folder `site`.

    `site` defaults to the folder where Python finds onnxruntime. This lists one folder and reads a few small files; importlib.metadata
    would open every installed package, which takes longer than loading a small model.
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
