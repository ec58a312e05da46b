"""The runtime functions that the export uses: sessions, hardware facts, LoRA files, bands of rows.

Only this module and `calibration.py` import the runtime.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.manifest import Component
from ..runtime.adapters import lora, lora_names
from ..runtime.engine import hardware, vae_bands
from ..runtime.engine.providers import resolve
from ..runtime.engine.session import Session, SessionOptions, open_session

Feeds = Mapping[str, NDArray[Any]]
LARGE = 1_000_000_000
"""Bytes from which a component is large: its weights stay on disk, and calibration generates fewer and smaller images."""


def size(folder: Path) -> int:
    """Bytes of the files in `folder`."""
    return sum(path.stat().st_size for path in folder.iterdir())


def open_graph(graph: Path, *, lean: bool | None = None, fold: bool = True) -> Session:
    """Open a graph on the CPU; with `lean` (the default for large graphs), its weights stay on disk.

    Without `fold`, the graph runs operator by operator, as written: 16-bit weights are widened one at a time, and tensors are freed
    after their last use.
    """
    if lean is None:
        lean = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*")) >= LARGE
    options = SessionOptions(threads=hardware.cores(), prepack=not lean, reorder=not lean, fold=fold, arena=not lean)
    return open_session(graph, resolve("cpu"), options)


def run_in_bands(folder: Path, component: Component, feeds: Feeds, size: int) -> dict[str, NDArray[Any]]:
    """Run the pieces of `component` in `folder` on bands of about `size` bytes."""
    session: dict[str, Session] = {}

    def call(piece: str, given: Feeds) -> dict[str, NDArray[Any]]:
        if piece not in session:
            session.clear()
            session[piece] = open_graph(folder / f"{piece}.onnx", lean=True)
        return session[piece].run(given)

    return vae_bands.run(component.pieces, call, feeds, size)


Delta = Callable[[tuple[int, ...], Callable[[], NDArray[np.float32]]], NDArray[np.float32]]
"""(shape of a weight, a function that reads it) → its change by a LoRA at strength 1."""


def read_lora(path: Path, modules: Mapping[str, Collection[str]]) -> dict[tuple[str, str], Delta]:
    """Read the LoRA file `path`: (component, layer) → its change.

    Raises:
        BundleError: not a safetensors file, or damaged.
        RequestError: not a LoRA, or it changes no layer of `modules`.
    """
    changes = lora.read(path, lora_names.places(modules)).changes
    return {(place.component, place.module): change.delta for place, change in changes.items()}


def give_memory_back() -> None:
    """Return freed memory to the system: tracing leaves much of it."""
    gc.collect()
    hardware.give_memory_back()


def free_memory() -> int | None:
    """Bytes of available memory; None if the system does not report them."""
    found = hardware.memory()
    return None if found is None else found[0]
