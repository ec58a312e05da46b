"""Foreign exceptions of the inference engine become ours."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ..models.errors import BundleError, DiffusetteError, ProviderError, ResourceError


class Cancelled(Exception):  # noqa: N818  # no error: somebody asked for it
    """A run was stopped by `Session.cancel`. The session is as good as before."""


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
"""How allocators report that there is no more: the C++ libraries, mmap, ORT's own arena, CUDA, DirectML (E_OUTOFMEMORY)."""
_PROVIDER = ("fallback to cpu ep", "cuda failure", "cudnn failure", "cublas failure", "80070057", "887a0005", "887a0006", "openvino")


_SCARCE = "memory does not suffice ({}): draw smaller, or use a leaner plan: --memory sequential or streamed"
_SHOWN = 300
"""Characters of a foreign message that are passed on."""


@contextmanager
def scarce(where: str) -> Generator[None]:
    """NumPy's MemoryError becomes ours; everything else passes. `where` begins the message."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"{where}: {_SCARCE.format(error)}") from error


@contextmanager
def mapped(where: str, options: Any = None) -> Generator[None]:
    """Foreign exceptions of the block become ours; `where` begins their message."""
    try:
        yield
    except (DiffusetteError, OSError):
        raise
    except Exception as error:  # ORT's classes have no base of their own
        if options is not None and options.terminate:
            raise Cancelled("the run was cancelled") from error
        text = " ".join(str(error).split())
        low = text.lower()
        text = text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"  # the cause stands at the end
        if isinstance(error, MemoryError) or any(mark in low for mark in _MEMORY):
            raise ResourceError(f"{where}: {_SCARCE.format(text)}") from error
        if type(error).__name__ in {"EPFail", "EngineError", "DeviceReset"} or any(mark in low for mark in _PROVIDER):
            raise ProviderError(
                f"{where}: the provider fails ({text}): use another --provider, or export for this one with --target"
            ) from error
        raise BundleError(f"{where}: onnxruntime refuses ({text}): `diffusette verify` the folder, or export the model again") from error
