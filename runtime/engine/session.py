"""A session: one graph, opened by a provider, that maps arrays to arrays.

The one place where ONNX Runtime is called; ort_errors.py maps its exceptions.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.bundle import check_external
from ...models.errors import BundleError, ProviderError
from ...models.formats import onnx_reader, onnx_replace_weights, widen_to_float32
from ...models.manifest import Tensor
from . import graph_cache, hardware, memory_arena
from .io_binding import Binding
from .ort_errors import mapped
from .ort_library import onnxruntime, preload_cuda
from .provider_table import Provider
from .session_options import SessionOptions, settings_for

Array = NDArray[Any]


class Session:
    """An open graph. Threads may share it."""

    def __init__(self, inference: Any, provider: Provider, *, alive: object = None, note: str = "") -> None:
        self._inference: Any = inference
        self._alive = alive  # memory that ORT uses but does not own
        self._device = provider.device
        self._idle: list[Binding] = []
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        self._turn = threading.Lock() if provider.one_run_at_a_time else nullcontext()
        self.provider = provider.name
        """The provider that runs the graph."""
        self.note = note
        """A note on what could not be done although the graph runs, such as a cache that cannot be written."""
        self._device_id = provider.device_id
        self.inputs: Mapping[str, Tensor] = {node.name: _tensor(node) for node in inference.get_inputs()}
        self.outputs: Mapping[str, Tensor] = {node.name: _tensor(node) for node in inference.get_outputs()}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph and return every output by name.

        Feeds are cast to the dtypes that the graph declares (float32 to float16, int64 to int32), and float16 outputs are returned as
        float32, so callers need not know about half precision. A feed in read-only memory (`array.flags.writeable = False`), or a view of
        it, is cast and copied to the provider's device once and reused while it is passed again.

        Raises:
            BundleError: a feed is missing or unknown, or its shape does not match the graph.
            ResourceError: not enough memory; the session can be used again.
            ProviderError: the provider failed.
            Cancelled: `cancel` was called from another thread.
        """
        inference = self._inference
        if inference is None:
            raise BundleError("the session is closed: open the graph again")
        if feeds.keys() != self.inputs.keys():
            raise BundleError(f"the graph expects {sorted(self.inputs)}, but received {sorted(feeds)}")
        options = onnxruntime().RunOptions()  # new for each run, since terminated options cannot be reused
        options.log_severity_level = 4
        with self._turn, self._registered(options), mapped(f"running on {self.provider}", options), self._bound(inference) as binding:
            values = binding.run(feeds, options)
        return {name: _widened(value) for name, value in zip(self.outputs, values, strict=True)}

    def placement(self) -> dict[str, int]:
        """Return ORT's name of each execution provider → how many nodes it runs; empty if ONNX Runtime does not tell."""
        try:
            parts = self._inference.get_provider_graph_assignment_info()
        except Exception:  # noqa: BLE001  # an older onnxruntime; a provider that runs all or nothing, for which it is not recorded
            return {}
        found: dict[str, int] = {}
        for part in parts:
            found[part.ep_name] = found.get(part.ep_name, 0) + len(part.get_nodes())
        return found

    def cancel(self) -> None:
        """Stop the current runs, from any thread; they raise `Cancelled`. Later runs are not affected."""
        with self._lock:
            for options in self._running:
                options.terminate = True

    def close(self) -> None:
        """Free the memory. A closed session cannot run again; closing twice is harmless."""
        if self._inference is not None:
            self._inference = self._alive = None
            self._idle.clear()
            give_memory_back()

    @contextmanager
    def _bound(self, inference: Any) -> Generator[Binding]:
        """A binding that no other thread uses."""
        with self._lock:
            binding = self._idle.pop() if self._idle else None
        yield (binding := binding or Binding(onnxruntime(), inference, self._device, self.inputs, self.outputs, self._device_id))
        with self._lock:
            if self._inference is not None:
                self._idle.append(binding)

    @contextmanager
    def _registered(self, options: Any) -> Generator[None]:
        with self._lock:
            self._running.add(options)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(options)


def give_memory_back() -> None:
    """Return the sessions' working memory and freed memory to the system; open sessions allocate it again when they run."""
    memory_arena.give_back(onnxruntime())
    hardware.give_memory_back()


def open_session(graph: Path, provider: Provider, options: SessionOptions | None = None) -> Session:
    """Open the ONNX file `graph`; its external data stays mapped from disk.

    Raises:
        BundleError: the graph cannot be run, its data is missing, or it lacks an initializer named in `options.weights`.
        ProviderError: the provider cannot run it, or would leave it to the CPU.
        ResourceError: not enough memory.
    """
    options = options or SessionOptions()
    ort = onnxruntime()
    if provider.fixed_shapes and not provider.compiler:  # a compiler is faster with fixed shapes but does not need them
        _need_fixed_shapes(graph, provider, options.dimensions)
    if options.cache is None or options.weights or options.wide or not provider.graph_cache:
        return _open(ort, graph, provider, options)
    with mapped(f"{graph} on {provider.name}"):
        parts = (provider.execution_provider, dict(provider.options), dict(options.dimensions), options.prepack, ort.__version__)
        cached, note = graph_cache.get(options.cache, graph, parts, lambda copy: _optimize(ort, graph, copy, provider, options))
    if cached is not None:
        try:
            return _open(ort, cached, provider, options, optimized=True)
        except (BundleError, ProviderError) as error:
            note = graph_cache.set_aside(cached, f"the optimized graph cannot be loaded from the cache ({error})")
    return _open(ort, graph, provider, options, note=note)


def _open(ort: Any, graph: Path, provider: Provider, options: SessionOptions, *, optimized: bool = False, note: str = "") -> Session:
    settings = settings_for(ort, provider, options)
    source: str | bytes = str(graph)
    if optimized:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    alive: object = None
    with mapped(f"{graph} on {provider.name}"):
        if options.weights:
            source, alive = _with_weights(ort, graph, settings, options.weights)
        if options.wide:
            source = _wide(graph, source, settings)
        inference = _inference(ort, source, settings, provider)
    running = inference.get_providers()
    if running[:1] != [provider.execution_provider]:
        raise ProviderError(
            f"{graph}: {provider.name} was requested, but {running[0]} would run it, because the libraries of {provider.name} cannot be "
            f'loaded: it needs {provider.driver or "its driver"}, and pip install "{provider.install}"; see `diffusette doctor`'
        )
    left = work_left_to_cpu(inference) if provider.name != "cpu" and not provider.whole else []
    if left:
        raise ProviderError(
            f"{graph}: {provider.name} leaves {', '.join(left)} to the CPU; export with --target {provider.targets[0]}, "
            f"or use another provider"
        )
    return Session(inference, provider, alive=alive, note=note)


def _inference(ort: Any, source: str | bytes, settings: Any, provider: Provider) -> Any:
    providers = None if provider.plugin else [(provider.execution_provider, dict(provider.options))]
    if provider.preload:
        preload_cuda()
    inference = ort.InferenceSession(source, settings, providers=providers, enable_fallback=0)
    inference.disable_fallback()
    return inference


def _optimize(ort: Any, graph: Path, copy: Path, provider: Provider, options: SessionOptions) -> None:
    """Write ORT's optimized form of `graph` to `copy`, with its weights beside it in the order of use.

    `session.save_external_prepacked_constant_initializers` would keep what kernels pack, too, but with it the int8 U-Net of
    SD 1.5's size gave NaN when 1.31.1 read it again.
    """
    settings = settings_for(ort, provider, options)
    settings.optimized_model_filepath = str(copy)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{copy.name}_data")
    settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    _inference(ort, str(graph), settings, provider)
    check_external(onnx_reader.read(copy), copy)  # mapping a truncated file would crash the process


def _with_weights(ort: Any, graph: Path, settings: Any, weights: Mapping[str, Array]) -> tuple[str | bytes, object]:
    """The path or bytes to open so that `graph` uses `weights`, and what must stay alive as long as the session.

    An external initializer is replaced by ORT before it optimizes; it takes the same dtype and shape only. Whatever else
    changes is written into a copy of the file in memory. (`SessionOptions.add_initializer` would come too late: after
    constants have been folded and weights reordered.)
    """
    initializers = onnx_reader.read(graph).initializers
    outside: dict[str, Any] = {}
    inside: dict[str, Array] = {}
    for name, array in weights.items():
        known = initializers.get(name)
        if known is None:
            raise BundleError(f"{graph}: no initializer {name!r}; the adapter is for another model; use one for this model")
        if known.location and known.shape == array.shape and known.dtype == array.dtype.name:
            outside[name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        else:
            inside[name] = array
    if outside:
        settings.add_external_initializers(list(outside), list(outside.values()))
    if not inside:
        return str(graph), outside
    settings.add_session_config_entry(_FOLDER, str(graph.parent))
    return onnx_replace_weights.replaced(graph, inside), outside


def _wide(graph: Path, source: str | bytes, settings: Any) -> bytes:
    """Return `graph`, read from `source`, converted to compute in float32."""
    if isinstance(source, str):
        settings.add_session_config_entry(_FOLDER, str(graph.parent))
        source = graph.read_bytes()
    return widen_to_float32.widened(source, {name for name, one in onnx_reader.read(graph).initializers.items() if one.dtype == "float16"})


_FOLDER = "session.model_external_initializers_file_folder_path"
"""The data folder of a graph that is passed in memory."""


def _need_fixed_shapes(graph: Path, provider: Provider, dimensions: Mapping[str, int]) -> None:
    inputs = onnx_reader.read(graph).inputs
    free = sorted({size for tensor in inputs.values() for size in tensor.shape if isinstance(size, str)} - dimensions.keys())
    if free:
        raise ProviderError(
            f"{graph}: {provider.name} needs fixed shapes, but {', '.join(free)} are free; set them in SessionOptions.dimensions"
        )


_WORK = frozenset({
    "Attention", "Conv", "ConvTranspose", "DynamicQuantizeMatMul", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "GroupNorm", "MatMul",
    "MatMulInteger", "MatMulNBits", "MultiHeadAttention", "NhwcConv", "QLinearConv", "QLinearMatMul",
})  # fmt: skip
"""The operators that take most of the time."""


def work_left_to_cpu(inference: Any) -> list[str]:
    """Return the operators of `inference` (opened with `session.record_ep_graph_assignment_info`) with heavy computation on the CPU."""
    if not hasattr(inference, "get_provider_graph_assignment_info"):  # an older onnxruntime
        return []
    parts = inference.get_provider_graph_assignment_info()
    return sorted({node.op_type for part in parts if part.ep_name == "CPUExecutionProvider" for node in part.get_nodes()} & _WORK)


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def _tensor(node: Any) -> Tensor:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise BundleError(f"{node.name}: the graph uses {node.type}, expected one of {', '.join(_DTYPES)}; export the model again")
    return Tensor(dtype, tuple(f"{node.name}_{axis}" if size is None else size for axis, size in enumerate(node.shape)))


def _widened(value: Array) -> Array:
    return value.astype(np.float32) if value.dtype == np.float16 else value
