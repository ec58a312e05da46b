"""Options for opening a graph, and their translation to ORT's SessionOptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from . import hardware, memory_arena
from .plugins import built_in, plugin_devices
from .provider_table import Provider

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class SessionOptions:
    """Options for opening a graph."""

    threads: int = 0
    """Threads per operator; 0 means one per physical core, or one per core that this process may use if those are fewer."""
    prepack: bool = True
    """Copy weights into the fastest layout for kernels. Off, they stay mapped from disk: a fraction of the memory, twice the time."""
    reorder: bool = True
    """Let operators choose the memory order of channels, for which float convolutions copy their weights. Off, a graph opens twenty times
    faster and copies no weights."""
    fold: bool = True
    """Fold constants and fuse operators. Off, the graph runs as exported, in the order of the file: 16-bit weights stay on disk and are
    widened one at a time, while folding would keep all of them in memory at twice the size."""
    arena: bool = True
    """Keep freed memory for the next operator; on the CPU all sessions share an arena (`memory_arena.py`). Off, the peak is a bit lower and
    runs are slower."""
    dimensions: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    """Values of free dimensions, by name; fixed shapes let ORT fold shape arithmetic away."""
    weights: Mapping[str, NDArray[Any]] = field(default_factory=lambda: _NOTHING)
    """Initializers to use instead of the file's, by name (LoRA, textual inversion)."""
    wide: bool = False
    """Compute half-precision parts of the graph in float32: twice the memory, and no overflow."""
    cache: Path | None = None
    """Folder for optimized graphs; if None, every start optimizes again."""


def settings_for(ort: Any, provider: Provider, options: SessionOptions) -> Any:
    """ORT's SessionOptions (of the module `ort`) for opening a graph on `provider`."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = options.threads or hardware.fewer_cores()
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.enable_mem_pattern = provider.memory_pattern
    settings.enable_cpu_mem_arena = options.arena
    if options.arena and provider.name == "cpu":
        memory_arena.share(ort, settings)
    settings.add_session_config_entry("session.load_model_format", "ONNX")  # what was checked; otherwise the name of the file decides
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # otherwise spinning threads delay the next session
    for name, value in options.dimensions.items():
        settings.add_free_dimension_override_by_name(name, value)
    if not options.prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    exact = provider.exact_sums and hardware.saturates()
    if exact:
        settings.add_session_config_entry("session.x64quantprecision", "1")  # applied during optimization, with or without VNNI
    if not options.fold:
        # Exact sums change the weights, which requires optimization.
        level = ort.GraphOptimizationLevel
        settings.graph_optimization_level = level.ORT_ENABLE_EXTENDED if exact else level.ORT_DISABLE_ALL
        settings.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # the default order widens all weights before computing
    elif not options.reorder:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if provider.compiler:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if provider.name != "cpu":
        key = "session.disable_cpu_ep_fallback" if provider.whole else "session.record_ep_graph_assignment_info"
        settings.add_session_config_entry(key, "1")
    _choose(provider, settings, options)
    return settings


def _choose(provider: Provider, settings: Any, options: SessionOptions) -> None:
    """Set the device of a plug-in in `settings`; other providers are passed when the session opens."""
    if provider.plugin and built_in(provider):
        tuned = _BUILT_IN_OPTIONS.get(provider.execution_provider, _no_options)
        settings.add_provider(provider.execution_provider, dict(provider.options) | tuned(options))
    elif provider.plugin:
        device = plugin_devices(provider)[provider.number]
        tuned = _PLUGIN_OPTIONS.get(provider.execution_provider, _no_options)
        settings.add_provider_for_devices([device], dict(provider.options) | tuned(options, device))


def openvino_options(options: SessionOptions) -> dict[str, str]:
    """Options of onnxruntime-openvino, which has the provider built in: those of `_openvino_properties` under its own names.

    By default it computes everything but int8 in float32. OpenVINO itself and its plug-in use bfloat16 if the processor supports it, which
    takes two thirds of the U-Net's time and half of the decoder's, so this requests it.
    """
    found = {"device_type": "CPU"}
    if "bf16" in hardware.flags():
        found["load_config"] = json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}})
    if options.threads:
        found["num_of_threads"] = str(options.threads)
    if options.cache is not None:
        found["cache_dir"] = str(options.cache / "openvino")
    return found


def _openvino_properties(options: SessionOptions, device: Any) -> dict[str, str]:
    """OpenVINO's property map, by device, as JSON. It has its own threads and its own cache."""
    properties: dict[str, str] = {}
    if options.threads:
        properties["INFERENCE_NUM_THREADS"] = str(options.threads)
    if options.cache is not None:
        properties["CACHE_DIR"] = str(options.cache / "openvino")
    return {"load_config": json.dumps({device.ep_metadata["ov_device"]: properties})} if properties else {}


def _no_options(*_: Any) -> dict[str, str]:
    return {}


_BUILT_IN_OPTIONS: Mapping[str, Callable[[SessionOptions], dict[str, str]]] = {"OpenVINOExecutionProvider": openvino_options}
_PLUGIN_OPTIONS: Mapping[str, Callable[[SessionOptions, Any], dict[str, str]]] = {"OpenVINOExecutionProvider": _openvino_properties}
"""ORT's name of a provider → the options that depend on those of the session."""
