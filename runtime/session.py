"""A session: one graph, opened by a provider, that maps arrays to arrays.

The one place where ONNX Runtime is called; failures.py makes its exceptions ours.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models import onnx_file, onnx_weights, single
from ..models.bundle import check_external
from ..models.errors import BundleError, ProviderError
from ..models.manifest import Tensor
from . import arena, graph_cache, machine
from .binding import Binding
from .failures import mapped
from .providers import Provider, onnxruntime
from .settings import SessionOptions, settings_for

Array = NDArray[Any]


class Session:
    """An open graph. Threads may share it."""

    def __init__(self, inference: Any, provider: Provider, *, alive: object = None, note: str = "") -> None:
        self._inference: Any = inference
        self._alive = alive  # memory that ORT reads and does not own
        self._device = provider.device
        self._idle: list[Binding] = []
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        self._turn = threading.Lock() if provider.one_run_at_a_time else nullcontext()
        self.provider = provider.name
        """The provider that really runs the graph."""
        self.note = note
        """What could not be done as asked, though the graph runs: a cache that cannot be written."""
        self.inputs: Mapping[str, Tensor] = {node.name: _tensor(node) for node in inference.get_inputs()}
        self.outputs: Mapping[str, Tensor] = {node.name: _tensor(node) for node in inference.get_outputs()}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by its name.

        Feeds are cast to the dtypes that the graph declares (float32 to float16, int64 to int32), and float16 outputs come
        as float32: half precision is the graph's own business. A feed whose memory is marked read-only
        (`array.flags.writeable = False`), or a view of it, is cast and copied to the provider's device once, and used again as long
        as it is given.

        Raises:
            BundleError: a feed is missing or too much, or its shape is not what the graph takes.
            ResourceError: memory does not suffice; the session can be used again.
            ProviderError: the provider failed.
            Cancelled: `cancel` was called from another thread.
        """
        inference = self._inference
        if inference is None:
            raise BundleError("the session is closed: open the graph again")
        if feeds.keys() != self.inputs.keys():
            raise BundleError(f"the graph takes {sorted(self.inputs)}, but was given {sorted(feeds)}")
        options = onnxruntime().RunOptions()  # one that has been terminated can never be used again: a new one each time
        options.log_severity_level = 4
        with self._turn, self._registered(options), mapped(f"running on {self.provider}", options), self._bound(inference) as binding:
            values = binding.run(feeds, options)
        return {name: _widened(value) for name, value in zip(self.outputs, values, strict=True)}

    def cancel(self) -> None:
        """Stop what is running now, from any thread: those runs raise `Cancelled`. Later runs are not touched."""
        with self._lock:
            for options in self._running:
                options.terminate = True

    def close(self) -> None:
        """Give memory back. A closed session cannot run again; closing twice is harmless."""
        if self._inference is not None:
            self._inference = self._alive = None
            self._idle.clear()
            give_memory_back()

    @contextmanager
    def _bound(self, inference: Any) -> Generator[Binding]:
        """A binding that no other thread uses."""
        with self._lock:
            binding = self._idle.pop() if self._idle else None
        yield (binding := binding or Binding(onnxruntime(), inference, self._device, self.inputs, self.outputs))
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
    """Return to the system what sessions computed in and what was freed; open sessions take it again when they run."""
    arena.give_back(onnxruntime())
    machine.give_memory_back()


def open_session(graph: Path, provider: Provider, options: SessionOptions | None = None) -> Session:
    """Open the ONNX file `graph`; its external data stays mapped from disk.

    Raises:
        BundleError: not a graph that can be run, its data is missing, or it has no initializer of a name in `options.weights`.
        ProviderError: the provider cannot run it, or would leave it to the CPU.
        ResourceError: memory does not suffice.
    """
    options = options or SessionOptions()
    ort = onnxruntime()
    if provider.fixed_shapes and not provider.compiler:  # which is quicker with fixed shapes, and can do without
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
            note = graph_cache.set_aside(cached, f"the optimized graph cannot be loaded again ({error})")
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
            f"{graph}: {provider.name} was asked for, but {running[0]} would run it, since the libraries of {provider.name} cannot be "
            f'loaded: pip install --force-reinstall "{provider.install}", and see `diffusette doctor`'
        )
    left = work_left_to_cpu(inference) if provider.name != "cpu" and not provider.whole else []
    if left:
        raise ProviderError(
            f"{graph}: {provider.name} leaves {', '.join(left)} to the CPU: export with --target {provider.targets[0]}, "
            f"or use another provider"
        )
    return Session(inference, provider, alive=alive, note=note)


def _inference(ort: Any, source: str | bytes, settings: Any, provider: Provider) -> Any:
    providers = None if provider.plugin else [(provider.execution_provider, dict(provider.options))]
    inference = ort.InferenceSession(source, settings, providers=providers, enable_fallback=0)
    inference.disable_fallback()
    return inference


def _optimize(ort: Any, graph: Path, copy: Path, provider: Provider, options: SessionOptions) -> None:
    """Write what ORT makes of `graph` to `copy`, weights beside it in the order in which they are computed with.

    `session.save_external_prepacked_constant_initializers` would keep what kernels pack, too, but with it the 8-bit U-Net of
    SD 1.5's size gave NaN when 1.31.1 read it again.
    """
    settings = settings_for(ort, provider, options)
    settings.optimized_model_filepath = str(copy)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{copy.name}_data")
    settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    _inference(ort, str(graph), settings, provider)
    check_external(onnx_file.read(copy), copy)  # a truncated file that is mapped ends the process


def _with_weights(ort: Any, graph: Path, settings: Any, weights: Mapping[str, Array]) -> tuple[str | bytes, object]:
    """Where to open `graph` from so that it uses `weights`, and what must stay in memory as long as the session.

    An external initializer is replaced by ORT before it optimizes; it takes the same dtype and shape only. Whatever else
    changes is written into a copy of the file in memory. (`SessionOptions.add_initializer` would come too late: after
    constants have been folded and weights reordered.)
    """
    initializers = onnx_file.read(graph).initializers
    outside: dict[str, Any] = {}
    inside: dict[str, Array] = {}
    for name, array in weights.items():
        known = initializers.get(name)
        if known is None:
            raise BundleError(f"{graph}: has no initializer {name!r}: the adapter was made for another model")
        if known.location and known.shape == array.shape and known.dtype == array.dtype.name:
            outside[name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        else:
            inside[name] = array
    if outside:
        settings.add_external_initializers(list(outside), list(outside.values()))
    if not inside:
        return str(graph), outside
    settings.add_session_config_entry(_FOLDER, str(graph.parent))
    return onnx_weights.replaced(graph, inside), outside


def _wide(graph: Path, source: str | bytes, settings: Any) -> bytes:
    """`graph`, opened from `source`, as it computes in float32."""
    if isinstance(source, str):
        settings.add_session_config_entry(_FOLDER, str(graph.parent))
        source = graph.read_bytes()
    return single.widened(source, {name for name, one in onnx_file.read(graph).initializers.items() if one.dtype == "float16"})


_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where a graph that is given in memory has its data."""


def _need_fixed_shapes(graph: Path, provider: Provider, dimensions: Mapping[str, int]) -> None:
    inputs = onnx_file.read(graph).inputs
    free = sorted({size for tensor in inputs.values() for size in tensor.shape if isinstance(size, str)} - dimensions.keys())
    if free:
        raise ProviderError(
            f"{graph}: {provider.name} needs fixed shapes, and {', '.join(free)} are free: give SessionOptions.dimensions for them"
        )


_WORK = frozenset({
    "Attention", "Conv", "ConvTranspose", "DynamicQuantizeMatMul", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "GroupNorm", "MatMul",
    "MatMulInteger", "MatMulNBits", "MultiHeadAttention", "NhwcConv", "QLinearConv", "QLinearMatMul",
})  # fmt: skip
"""Operators that a picture's time goes into."""


def work_left_to_cpu(inference: Any) -> list[str]:
    """Operators of `inference` (opened with `session.record_ep_graph_assignment_info`) that do real work on the CPU."""
    if not hasattr(inference, "get_provider_graph_assignment_info"):  # an older onnxruntime does not tell
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
        raise BundleError(f"{node.name}: the graph uses {node.type}, expected one of {', '.join(_DTYPES)}: export it again")
    return Tensor(dtype, tuple(f"{node.name}_{axis}" if size is None else size for axis, size in enumerate(node.shape)))


def _widened(value: Array) -> Array:
    return value.astype(np.float32) if value.dtype == np.float16 else value
