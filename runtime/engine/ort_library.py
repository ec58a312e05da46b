"""The library ONNX Runtime: importing it with its telemetry off and its log silent, and the wheels that provide it.

It is imported late, by `onnxruntime()`, so that importing the runtime stays cheap, and a clash of its wheels is reported before it does
harm.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...models.errors import ProviderError


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
        # It looks for graphics cards while it loads; without a display, its Windows build writes an error to the terminal.
        with _without_standard_error() if sys.platform == "win32" else nullcontext():
            ort: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ProviderError(
            f'onnxruntime cannot be loaded ({error}): pip install "diffusette[cpu]" (or cuda, directml, openvino)'
        ) from error
    ort.set_default_logger_severity(4)
    return ort


@cache
def included() -> frozenset[str]:
    """Return ORT's names of the execution providers in the installed onnxruntime.

    Asked once, before a plug-in is registered: from 1.26 on, `get_available_providers` lists registered plug-ins too.

    Raises:
        ProviderError: as `onnxruntime`.
    """
    return frozenset(onnxruntime().get_available_providers())


def preload_cuda() -> None:
    """Load the CUDA and cuDNN libraries that pip installed, where ORT's provider would not find them by itself.

    Without any, nothing happens, and the libraries of the system are used.
    """
    preload = getattr(onnxruntime(), "preload_dlls", None)  # onnxruntime 1.21 and later
    if preload is not None:
        with redirect_stdout(io.StringIO()), suppress(Exception):  # it prints what it misses; opening a session tells what matters
            preload()


@contextmanager
def _without_standard_error() -> Generator[None]:
    """Drop what libraries write to standard error, past Python, within the block."""
    try:
        kept = os.dup(2)
    except OSError:  # a program without standard error, such as a window
        yield
        return
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
