"""The float32 graphs of a bundle: each component is traced, rewritten for its target, saved, and compared with torch."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from ..models import manifest
from ..models.errors import ResourceError
from ..models.manifest import Target
from . import runtime_bridge
from .graphs import edit, parity, save
from .graphs.run_in_pieces import Pieces
from .packaging.staging import Stage
from .runtime_bridge import open_graph
from .sources import onnx_folder
from .sources.diffusers_folder import Source
from .sources.locate import Origin, open_source
from .targets import TARGETS
from .tracing import merge_lora
from .tracing.merge_lora import Lora

LARGE = 400_000_000
"""Bytes of a component's weights from which a model is exported in child processes."""


def floats_of(
    stage: Stage, origin: Origin, source: Source, target: Target, loras: Sequence[Lora], progress: Callable[[str, float], None]
) -> tuple[dict[str, manifest.Component], list[str]]:
    """Export every component of `source` in float32; each is a stage that can resume. Also return notes on their weights.

    Components of a large model are exported in two child processes, the largest first, so that their memory is freed completely.

    Raises:
        ResourceError: an export process was killed.
        NumericalError: a component does not agree with torch.
    """
    records: dict[str, Any] = {name: stage.recall(name) for name in source.components}
    sizes = {name: bytes_of(source, name) for name, record in records.items() if record is None}
    large = max(sizes.values(), default=0) >= LARGE

    def finished(name: str, made: Floats) -> None:
        save.known(stage.work / "float" / name, made.files)
        records[name] = msgspec.to_builtins(made.component)
        stage.remember(name, records[name])
        stage.remember(f"{name}.note", made.note)
        progress(f"{name}: done", sum(record is not None for record in records.values()) / len(records) / 2)

    for name in () if large else sizes:
        progress(f"{name}: tracing", sum(record is not None for record in records.values()) / len(records) / 2)
        finished(name, export_float(source, name, stage.work / "float" / name, target, loras))
    queue = sorted(sizes, key=lambda name: -sizes[name]) if large else []
    with _pool() as pool:
        running = {pool.submit(_export_in_child, origin, name, stage.work / "float" / name, target, loras): name for name in queue}
        for future in as_completed(running):
            try:
                finished(running[future], future.result())
            except BrokenProcessPool as error:
                raise ResourceError(
                    f"{running[future]}: its export process was killed, most likely because memory ran out; "
                    "close other programs and run the export again"
                ) from error
    notes = [note for name in records if (note := stage.recall(f"{name}.note"))]
    return {name: msgspec.convert(record, manifest.Component) for name, record in records.items()}, notes


def _pool() -> ProcessPoolExecutor:
    """A pool of two processes: tracing takes longest, and each uses one core."""
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),))


def _end_with(parent: int) -> None:
    """Have the system end this process with its parent (Linux), so that a killed export leaves no writer behind."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


@dataclass(frozen=True)
class Floats:
    """A float32 component on disk."""

    component: manifest.Component
    files: Mapping[str, manifest.File]
    """Size and hash by file name."""
    note: str = ""
    """What the user should know about its weights."""


def _export_in_child(origin: Origin, name: str, destination: Path, target: Target, loras: Sequence[Lora]) -> Floats:
    made = export_float(open_source(origin), name, destination, target, loras)
    runtime_bridge.give_memory_back()
    return made


def export_float(source: Source, name: str, folder: Path, target: Target, loras: Sequence[Lora] = ()) -> Floats:
    """Write the component `name` in float32 into `folder`, and compare it with torch, or with the source's own graph.

    Raises:
        NumericalError: they do not agree.
    """
    if source.graphs is not None and name in source.graphs.components:
        return Floats(onnx_folder.export(source, name, folder, target), {})
    from .tracing import build, torch_reference  # the parent of child processes never imports torch
    from .tracing.trace import trace

    component = merge_lora.merge(build.build(source, name), source, loras)
    model = edit.apply(trace(component), TARGETS[target])
    feeds = torch_reference.cases(component)
    runtime_bridge.give_memory_back()
    with ThreadPoolExecutor(1) as writer:
        files = writer.submit(save.save, model, folder)
        with torch_reference.loaded(component):
            expected = torch_reference.references(component, feeds)
        written = files.result()
    del model, files
    runtime_bridge.give_memory_back()
    found = parity.compare(Pieces(folder, open_graph), feeds, expected)
    parity.require(name, "fp32", found, parity.BARS["fp32"])
    inputs, outputs = (
        {port.name: manifest.Tensor(port.dtype, port.shape) for port in ports} for ports in (component.inputs, component.outputs)
    )
    made = manifest.Component(f"{name}/{save.GRAPH}", "fp32", inputs, outputs, found.db)
    return Floats(made, written, _unused(name, component.unused))


def _unused(name: str, tensors: Sequence[str]) -> str:
    shown = ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")
    return f"{name}: the config has no place for the weights {shown}: they are left out" if tensors else ""


def bytes_of(source: Source, name: str) -> int:
    """Bytes of a component's weights in float32."""
    shapes = source.weights("vae" if name.startswith("vae") else name).shapes
    return 4 * sum(math.prod(shape) for shape in shapes.values())
