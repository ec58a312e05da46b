"""Map exceptions of ONNX Runtime to the errors of this package."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ...models.errors import BundleError, Cancelled, DiffusetteError, ProviderError, ResourceError

_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "cannot allocate memory",
    "failed to allocate",
    "out of memory",
    "cudaerrormemoryallocation",
    "storage size overflow",
    "8007000e",
)
"""Phrases of allocators that ran out of memory: the C++ libraries, mmap, ORT's own arena, CUDA, DirectML (E_OUTOFMEMORY)."""
_PROVIDER = ("fallback to cpu ep", "cuda failure", "cudnn failure", "cublas failure", "80070057", "887a0005", "887a0006", "openvino")


_SCARCE = "not enough memory ({}): generate smaller images, or use a leaner plan: --memory sequential or streamed"
_SHOWN = 300
"""The most characters of a message from ONNX Runtime that are shown."""


@contextmanager
def scarce(where: str) -> Generator[None]:
    """Map MemoryError to ResourceError; `where` begins the message. Other exceptions pass."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"{where}: {_SCARCE.format(error)}") from error


@contextmanager
def mapped(where: str, options: Any = None) -> Generator[None]:
    """Map exceptions of ONNX Runtime in the block to the errors of this package; `where` begins their message."""
    try:
        yield
    except (DiffusetteError, OSError):
        raise
    except Exception as error:  # ORT's exceptions have no common base class
        if options is not None and options.terminate:
            raise Cancelled("the run was cancelled") from error
        text = " ".join(str(error).split())
        low = text.lower()
        text = text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"  # the cause is at the end
        if isinstance(error, MemoryError) or any(mark in low for mark in _MEMORY):
            raise ResourceError(f"{where}: {_SCARCE.format(text)}") from error
        if type(error).__name__ in {"EPFail", "EngineError", "DeviceReset"} or any(mark in low for mark in _PROVIDER):
            raise ProviderError(
                f"{where}: the provider failed ({text}); use another --provider, or export for this one with --target"
            ) from error
        raise BundleError(
            f"{where}: ONNX Runtime refuses it ({text}); check the folder with `diffusette verify`, or export the model again"
        ) from error
