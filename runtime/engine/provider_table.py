"""The execution providers as data: what each needs, runs and is good for. Adding one is an entry of `TABLE`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ...models.manifest import Target

AUTO = "auto"
System = Literal["linux", "win32", "darwin"]


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
    catalogue: bool = False
    """Whether `plugin` is Windows ML's catalogue, which knows the libraries of several execution providers."""
    systems: tuple[System, ...] = ("linux", "win32")
    """The systems, as `sys.platform`, for which its makers publish it."""
    driver: str = ""
    """What it needs besides the packages."""
    legacy: str = ""
    """What its makers recommend instead of it."""
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
    preload: bool = False
    """Load the libraries of pip's NVIDIA packages before a session opens."""
    device: str | None = None
    """ORT's name of the memory that keeps read-only inputs between runs; None for CPU memory."""
    device_option: str = ""
    """The provider option that takes a device's number, for providers that onnxruntime includes."""
    number: int = 0
    """The device to use: its place in the list of `diffusette doctor`."""
    device_id: int = 0
    """The provider's own number of that device."""
    memory: int = 0
    """Bytes of that device's own memory; 0 if it has none or they are unknown."""
    note: str = ""
    """What `auto` skipped, and why; empty if the provider was named."""
    fallback: Provider | None = None
    """What continues if this provider, which `auto` selected, fails with a graph."""


_NVIDIA = "an NVIDIA card and its driver, 580 or newer for CUDA 13 (nvidia.com/drivers)"
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
                driver=_NVIDIA,
                whole=False,
                graph_cache=True,
                preload=True,
                device="cuda",
                device_option="device_id",
            ),
            Provider(
                "tensorrt-rtx",
                "NvTensorRTRTXExecutionProvider",
                "diffusette[tensorrt-rtx]",
                ("portable",),
                plugin="onnxruntime_ep_nv_tensorrt_rtx",
                driver=f"{_NVIDIA}, RTX 30xx or newer",
                whole=False,
                fixed_shapes=True,  # free dimensions need profiles of the shapes
                compiler=True,
            ),
            Provider(
                "migraphx",
                "MIGraphXExecutionProvider",
                "diffusette[migraphx]",
                ("portable",),
                systems=("linux",),
                driver="an AMD card and ROCm (rocm.docs.amd.com)",
                whole=False,
                fixed_shapes=True,  # it compiles for each size
                compiler=True,
                device_option="device_id",
            ),
            Provider(
                "windowsml",
                "",  # that of the device
                "diffusette[windowsml]",
                ("portable",),
                plugin="windowsml",
                catalogue=True,
                systems=("win32",),
                driver="Windows 11 24H2 or newer",
                whole=False,
                fixed_shapes=True,
                compiler=True,  # as all providers in its catalogue are
            ),
            Provider(
                "directml",
                "DmlExecutionProvider",
                "diffusette[directml]",
                ("directml", "portable"),
                systems=("win32",),
                driver="a card with DirectX 12 and its driver",
                legacy="its makers no longer develop it and recommend windowsml",
                whole=False,
                fixed_shapes=True,  # free dimensions end in error 80070057, or in a slow path
                memory_pattern=False,  # its documentation demands it off
                one_run_at_a_time=True,  # required by its documentation, for each session
                device="dml",
                device_option="device_id",
            ),
            Provider(
                "openvino",
                "OpenVINOExecutionProvider",
                "diffusette[openvino]",
                ("openvino", "portable"),
                plugin="onnxruntime_ep_openvino",  # whole: a graph split between providers is slower than the CPU provider
                driver="an Intel processor; for its graphics, Intel's driver",
                fixed_shapes=True,  # free dimensions cost time, and memory for each size
                compiler=True,  # after ORT's optimizations it runs most int8 operators in 16 bits
            ),
            Provider(
                "qnn",
                "QNNExecutionProvider",
                "diffusette[qnn]",
                ("portable",),
                plugin="onnxruntime_qnn",
                driver="a Snapdragon processor with a Hexagon NPU, and Qualcomm's driver",
                whole=False,
                fixed_shapes=True,  # its documentation: no free dimensions
                compiler=True,
            ),
            Provider(
                "coreml",
                "CoreMLExecutionProvider",
                "diffusette[cpu]",
                ("portable",),
                options=MappingProxyType({"ModelFormat": "MLProgram", "RequireStaticInputShapes": "1"}),
                systems=("darwin",),
                driver="macOS 12 or newer",
                whole=False,
                fixed_shapes=True,
                compiler=True,
            ),
            Provider(
                "webgpu",
                "WebGpuExecutionProvider",
                "diffusette[webgpu]",
                ("webgpu",),  # not portable: some of its convolutions come out wrong (export/passes/webgpu_channels.py)
                plugin="onnxruntime_ep_webgpu",
                systems=("linux", "win32", "darwin"),
                driver="a card with Vulkan (Linux), DirectX 12 (Windows) or Metal (macOS), and its driver",
                whole=False,
                one_run_at_a_time=True,  # one command queue for the device
            ),
            Provider(
                "cpu",
                "CPUExecutionProvider",
                "diffusette[cpu]",
                ("cpu", "portable"),
                systems=("linux", "win32", "darwin"),
                memory_pattern=False,  # it allocates a whole run at once, in addition to the first run's memory, and is no faster
                graph_cache=True,
                exact_sums=True,  # full-range int8 weights saturate on such processors; costs about a seventh of the time there
            ),
        )
    }
)
ORDER: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "linux": ("cuda", "tensorrt-rtx", "migraphx", "openvino", "cpu"),
        "win32": ("windowsml", "cuda", "tensorrt-rtx", "qnn", "openvino", "directml", "cpu"),
        "darwin": ("cpu",),
    }
)
"""The order in which `auto` tries providers. WebGPU is young, and CoreML is in every wheel for macOS but has not been seen running, so
both have to be named."""
