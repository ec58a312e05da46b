"""A session: one graph, opened by a provider, that maps arrays to arrays.

The one place where ONNX Runtime is called and where its exceptions become ours.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.errors import BundleError, DiffusetteError, ProviderError, ResourceError
from ..models.manifest import Tensor
from .providers import Provider, onnxruntime, plugin_devices

Array = NDArray[Any]


@dataclass(frozen=True)
class SessionOptions:
    """How a graph is opened."""

    threads: int = 0
    """Threads inside an operator; 0 lets ORT take one a physical core."""
    prepack: bool = True
    """Copy weights into the layout that kernels like. Off, they stay mapped on disk: a fifth of the memory, twice the time."""
    arena: bool = True
    """Keep freed memory for the next step. Off, a little less memory at the peak and about a fifth more time."""
    dimensions: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Values of free dimensions by name; fixed shapes let ORT fold shape arithmetic away."""


class Cancelled(Exception):  # noqa: N818  # it is no error: somebody asked for it
    """A run was stopped by `Session.cancel`. The session is as good as before."""


class Session:
    """An open graph. Threads may share it."""

    def __init__(self, inference: Any, provider: Provider) -> None:
        self._inference: Any = inference
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        self._turn = threading.Lock() if provider.one_run_at_a_time else nullcontext()
        self.provider = provider.name
        """The provider that really runs the graph."""
        self.inputs: Mapping[str, Tensor] = {node.name: _tensor(node) for node in inference.get_inputs()}
        self.outputs: Mapping[str, Tensor] = {node.name: _tensor(node) for node in inference.get_outputs()}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by its name.

        Feeds are cast to the dtypes that the graph declares (float32 to float16, int64 to int32), and float16 outputs come
        as float32: half precision is the graph's own business.

        Raises:
            BundleError: a feed is missing or too much, or has another rank or size than the graph declares.
            ResourceError: memory does not suffice; the session can be used again.
            ProviderError: the provider failed.
            Cancelled: `cancel` was called from another thread.
        """
        names = list(self.outputs)
        ready = self._feeds(feeds)
        options = onnxruntime().RunOptions()  # one that has been terminated can never be used again: a new one each time
        options.log_severity_level = 4
        with self._turn, self._registered(options), _mapped(f"the graph on {self.provider}", options):
            values = self._open().run(names, ready, options)
        return {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in zip(names, values, strict=True)}

    def cancel(self) -> None:
        """Stop what is running now, from any thread; those runs raise `Cancelled`. Later runs are not touched."""
        with self._lock:
            for options in self._running:
                options.terminate = True

    def close(self) -> None:
        """Give memory back. A closed session cannot run again; closing twice is harmless."""
        self._inference = None

    def _open(self) -> Any:
        if self._inference is None:
            raise BundleError("the session was closed: open the graph again")
        return self._inference

    @contextmanager
    def _registered(self, options: Any) -> Iterator[None]:
        with self._lock:
            self._running.add(options)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(options)

    def _feeds(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if feeds.keys() != self.inputs.keys():
            raise BundleError(f"the graph takes {sorted(self.inputs)}, but was given {sorted(feeds)}")
        return {name: np.ascontiguousarray(feeds[name], dtype=declared.dtype) for name, declared in self.inputs.items()}


def open_session(graph: Path, provider: Provider, options: SessionOptions | None = None) -> Session:
    """Open the ONNX file `graph`; its external data stays mapped from disk.

    Raises:
        BundleError: not a graph that can be run, or its data is missing.
        ProviderError: the provider cannot run it, or would leave it to the CPU.
        ResourceError: memory does not suffice.
    """
    options = options or SessionOptions()
    ort = onnxruntime()
    settings = _settings(ort, provider, options)
    with _mapped(f"{graph} on {provider.name}"):
        providers = None if provider.plugin else [(provider.execution_provider, dict(provider.options))]
        inference = ort.InferenceSession(str(graph), settings, providers=providers, enable_fallback=0)
    running = inference.get_providers()
    if running[:1] != [provider.execution_provider]:
        raise ProviderError(
            f"{graph}: {provider.name} was asked for, but {running[0]} would run it: its libraries cannot be loaded; "
            f'see `diffusette doctor`, or pip install --force-reinstall "{provider.install}"'
        )
    return Session(inference, provider)


def _settings(ort: Any, provider: Provider, options: SessionOptions) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = options.threads
    settings.enable_cpu_mem_arena = options.arena
    settings.enable_mem_pattern = provider.memory_pattern and options.arena
    for name, value in options.dimensions.items():
        settings.add_free_dimension_override_by_name(name, value)
    if not options.prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if provider.name != "cpu" and provider.strict:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if provider.plugin:
        settings.add_provider_for_devices(plugin_devices(provider)[:1], dict(provider.options))
    return settings


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
        raise BundleError(f"{node.name}: the graph uses {node.type}, expected one of {', '.join(_DTYPES.values())}: export it again")
    return Tensor(dtype, tuple(size if size is not None else f"{node.name}_{axis}" for axis, size in enumerate(node.shape)))


_MEMORY = (
    "bad_alloc",
    "failed to allocate memory",
    "out of memory",
    "cudaerrormemoryallocation",
    "failed to allocate",
    "8007000e",
    "887a0005",
)
_DEVICE = ("80070057", "887a0006", "cuda failure", "cudnn failure", "cublas failure")


@contextmanager
def _mapped(where: str, options: Any = None) -> Iterator[None]:
    """Foreign exceptions of the block as ours."""
    try:
        yield
    except (DiffusetteError, KeyboardInterrupt):
        raise
    except Exception as error:
        if options is not None and options.terminate:
            raise Cancelled("the run was cancelled") from error
        raise _translated(where, error) from error


def _translated(where: str, error: Exception) -> DiffusetteError:
    text = " ".join(str(error).split())
    low = text.lower()
    if isinstance(error, MemoryError) or any(mark in low for mark in _MEMORY):
        return ResourceError(f"{where}: out of memory: draw smaller, or use a leaner plan (--memory sequential or streamed) ({text[:200]})")
    if "cpu ep fallback" in low or any(mark in low for mark in _DEVICE) or type(error).__name__ in {"EPFail", "EngineError", "DeviceReset"}:
        return ProviderError(
            f"{where}: the provider cannot run this graph ({text[:300]}): use another --provider, or export for it with --target"
        )
    return BundleError(f"{where}: onnxruntime refuses it ({text[:300]}): export the model again, or `diffusette verify` its folder")
