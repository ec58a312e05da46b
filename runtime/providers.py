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
_PLUGINS: set[str] = set()
"""Plug-in libraries that this process has registered: ORT refuses a second time."""


@dataclass(frozen=True)
class Provider:
    """A way to run a graph. The fields are what ORT and its makers ask for; `TABLE` says why."""

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
    """Module of a plug-in wheel that sits on the CPU wheel."""
    strict: bool = True
    """Whether a single node left to the CPU is an error. CUDA and DirectML leave shape arithmetic to the CPU on purpose;
    for them only real work on the CPU is an error."""
    fixed_shapes: bool = False
    """Every free dimension has to be overridden before the session is opened."""
    memory_pattern: bool = True
    one_run_at_a_time: bool = False
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
                        "arena_extend_strategy": "kSameAsRequested",  # doubling wastes up to half of a small card's memory
                        "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive search takes gigabytes of workspace and minutes
                        "cudnn_conv_use_max_workspace": "1",  # the fast convolutions need it; off, they cost speed
                        "prefer_nhwc": "1",  # tensor cores work on channels-last; saves a transpose around each convolution
                        "use_tf32": "1",  # 10 bits of mantissa are what fp16 graphs have anyway
                    }
                ),
                strict=False,
            ),
            Provider(
                "directml",
                "DmlExecutionProvider",
                "diffusette[directml]",
                ("directml", "portable"),
                strict=False,
                fixed_shapes=True,  # free dimensions end in 80070057, or in a slow path
                memory_pattern=False,  # its documentation demands it
                one_run_at_a_time=True,  # likewise: Run is not thread-safe
            ),
            Provider(
                "openvino", "OpenVINOExecutionProvider", "diffusette[openvino]", ("openvino", "portable"), plugin="onnxruntime_ep_openvino"
            ),
            Provider(
                "webgpu", "WebGpuExecutionProvider", "diffusette[webgpu]", ("portable",), plugin="onnxruntime_ep_webgpu", strict=False
            ),
            Provider("cpu", "CPUExecutionProvider", "diffusette[cpu]", ("cpu", "portable")),
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
            f"this bundle was made for {target!r}, and the provider {name!r} runs {' and '.join(map(repr, provider.targets))}: "
            f"use --provider {' or '.join(able)}, or export with --target {provider.targets[0]}"
        )
    missing = why_missing(provider)
    if missing:
        raise ProviderError(missing)
    return provider


def _automatic(target: Target | None) -> Provider:
    passed: list[str] = []
    for name in _AUTOMATIC:
        provider = TABLE[name]
        if target is not None and target not in provider.targets:
            passed.append(f"{name} does not run {target!r} graphs")
            continue
        missing = why_missing(provider)
        if not missing:
            return replace(provider, note="; ".join(passed))
        passed.append(missing)
    raise ProviderError(f"no provider can run {'a bundle' if target is None else f'a bundle made for {target!r}'}: {'; '.join(passed)}")


def why_missing(provider: Provider) -> str:
    """Why `provider` cannot run here, with what to install; empty when it can.

    Raises:
        ProviderError: there is no onnxruntime at all, or two clash.
    """
    hint = f'pip install "{provider.install}"'
    if provider.plugin is None:
        if provider.execution_provider in onnxruntime().get_available_providers():
            return ""
        owner = ", ".join(distributions()) or "onnxruntime"
        return f"{provider.name} is not in the installed {owner}: `pip uninstall {owner}`, then `{hint}`"
    if find_spec(provider.plugin) is None:
        return f"{provider.name} is not installed: {hint}"
    try:
        devices = plugin_devices(provider)
    except ProviderError as error:
        return str(error)
    if devices:
        return ""
    return f"{provider.name} is installed but supports no device of this machine (its plug-in takes only hardware that its makers know)"


def plugin_devices(provider: Provider) -> list[Any]:
    """The devices (ORT's OrtEpDevice) that the plug-in of `provider` offers, the best first; registers the plug-in once.

    Raises:
        ProviderError: the plug-in cannot be loaded.
    """
    ort = onnxruntime()
    assert provider.plugin is not None
    if provider.plugin not in _PLUGINS:
        try:
            library = importlib.import_module(provider.plugin).get_library_path()
            ort.register_execution_provider_library(provider.plugin, library)
        except Exception as error:
            raise ProviderError(
                f"the {provider.name} plug-in cannot be loaded ({error}): install it again: pip install --force-reinstall {provider.plugin.replace('_', '-')}"
            ) from error
        _PLUGINS.add(provider.plugin)
    kinds = ort.OrtHardwareDeviceType
    rank = {kinds.GPU: 0, kinds.CPU: 1, kinds.NPU: 2}
    found = [device for device in ort.get_ep_devices() if device.ep_name == provider.execution_provider]
    return sorted(found, key=lambda device: rank[device.device.type])


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
            f'onnxruntime cannot be loaded ({error}): pip install "diffusette[cpu]", or cuda, directml, openvino'
        ) from error
    ort.set_default_logger_severity(4)
    return ort


def why_clashing(found: Mapping[str, str]) -> str:
    """The cure, if more than one of `distributions()` owns the same module; else empty."""
    if len(found) < 2:
        return ""
    names = " and ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{names} are installed together and have overwritten one another's files: `pip uninstall -y {' '.join(found)}`, "
        f'then install one: pip install "diffusette[cpu]" (or cuda, directml)'
    )


def distributions(site: Path | None = None) -> dict[str, str]:
    """Name → version of every distribution whose files are the package onnxruntime in the folder `site`.

    `site` is where the import system finds onnxruntime, unless given. Reads one folder and a handful of small files,
    since importlib.metadata would read every installed package.
    """
    if site is None:
        spec = find_spec("onnxruntime")
        if spec is None or spec.origin is None:
            return {}
        site = Path(spec.origin).parent.parent
    found: dict[str, str] = {}
    for info in sorted(site.glob("o*rt*.dist-info")):
        name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
        try:
            record = (info / "RECORD").read_text("utf-8")
        except OSError:
            continue
        if f"\n{_MARK}" in f"\n{record}":
            found[name.replace("_", "-")] = version
    return found


_MARK = "onnxruntime/__init__.py,"
