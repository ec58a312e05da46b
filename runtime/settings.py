"""How a graph is opened: what may be asked for, and what ORT is told of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from . import arena, machine
from .providers import Provider, built_in, plugin_devices

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class SessionOptions:
    """How a graph is opened."""

    threads: int = 0
    """Threads inside an operator; 0 takes one for each physical core, or for each core that this process may use if those are fewer."""
    prepack: bool = True
    """Copy weights into the layout that kernels like best. Off, they stay mapped from disk: a fraction of the memory, twice the time."""
    reorder: bool = True
    """Let operators choose the order of channels in memory, for which float convolutions copy their weights. Off, a graph opens
    twenty times faster and no weight is copied."""
    fold: bool = True
    """Compute ahead what is constant, and fuse. Off, the graph runs as it was exported, operators in the order of the file: 16-bit
    weights stay on disk and are widened one at a time, where folding would keep all of them in memory at twice the size."""
    arena: bool = True
    """Keep freed memory for the next operator, on the CPU in one place for all sessions (`arena.py`). Off, a little less at the peak,
    and slower."""
    dimensions: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    """Values of free dimensions, by name; fixed shapes let ORT fold shape arithmetic away."""
    weights: Mapping[str, NDArray[Any]] = field(default_factory=lambda: _NOTHING)
    """Initializers to use instead of the file's, by name (LoRA, textual inversion)."""
    wide: bool = False
    """Compute in float32 what the graph has in half precision: twice the memory, and nothing overflows."""
    cache: Path | None = None
    """Folder for optimized graphs; none, and every start optimizes anew."""


def settings_for(ort: Any, provider: Provider, options: SessionOptions) -> Any:
    """What ORT (the module `ort`) is told, its SessionOptions, to open a graph by `provider`."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = options.threads or machine.fewer_cores()
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.enable_mem_pattern = provider.memory_pattern
    settings.enable_cpu_mem_arena = options.arena
    if options.arena and provider.name == "cpu":
        arena.share(ort, settings)
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # else they keep the next session's waiting
    for name, value in options.dimensions.items():
        settings.add_free_dimension_override_by_name(name, value)
    if not options.prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    exact = provider.exact_sums and machine.saturates()
    if exact:
        settings.add_session_config_entry("session.x64quantprecision", "1")  # ORT does it while it optimizes, VNNI or not
    if not options.fold:
        # Where weights have to be changed for exact sums, they cannot stay as they are.
        level = ort.GraphOptimizationLevel
        settings.graph_optimization_level = level.ORT_ENABLE_EXTENDED if exact else level.ORT_DISABLE_ALL
        settings.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # the other order widens all weights first, then computes
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
    """Has `settings` name the device of a plug-in; other providers are given with the graph."""
    if provider.plugin and built_in(provider):
        settings.add_provider(provider.execution_provider, dict(provider.options) | built_in_options(options))
    elif provider.plugin:
        devices = plugin_devices(provider)[:1]
        settings.add_provider_for_devices(devices, dict(provider.options) | _plugin_options(provider, devices[0], options))


def built_in_options(options: SessionOptions) -> dict[str, str]:
    """What onnxruntime-openvino takes, which has the provider built in: what `_plugin_options` says, in names of its own.

    It has what is not in 8 bit computed in float32, unless told otherwise; OpenVINO by itself, and its plug-in, take bfloat16 where
    the processor has it, which is two thirds of the U-Net's time and half of the decoder's.
    """
    found = {"device_type": "CPU"}
    if "bf16" in machine.flags():
        found["load_config"] = json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}})
    if options.threads:
        found["num_of_threads"] = str(options.threads)
    if options.cache is not None:
        found["cache_dir"] = str(options.cache / "openvino")
    return found


def _plugin_options(provider: Provider, device: Any, options: SessionOptions) -> dict[str, str]:
    """What only OpenVINO takes: its own property map, by device, as JSON. It has its own threads and its own cache."""
    if provider.name != "openvino":
        return {}
    properties: dict[str, str] = {}
    if options.threads:
        properties["INFERENCE_NUM_THREADS"] = str(options.threads)
    if options.cache is not None:
        properties["CACHE_DIR"] = str(options.cache / "openvino")
    return {"load_config": json.dumps({device.ep_metadata["ov_device"]: properties})} if properties else {}
