"""The float graphs of a bundle: each component traced, rewritten for its target, written, and compared with torch."""

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
from . import calibrate, graph, graph_folder, merge, parity, write
from .calibrate import open_graph
from .merge import Lora
from .origin import Origin, open_source
from .pieces import Pieces
from .publish import Stage
from .source import Source
from .targets import TARGETS

LARGE = 400_000_000
"""Bytes of a component's weights from which a model is exported in other processes."""


def floats_of(
    stage: Stage, origin: Origin, source: Source, target: Target, loras: Sequence[Lora], progress: Callable[[str, float], None]
) -> dict[str, manifest.Component]:
    """Every component of `source` in float32, each a stage of its own.

    Those of a large model come from two other processes, the largest first, so that their memory is given back whole.

    Raises:
        ResourceError: a process was killed.
        NumericalError: a component does not agree with torch.
    """
    records: dict[str, Any] = {name: stage.recall(name) for name in source.components}
    sizes = {name: bytes_of(source, name) for name, record in records.items() if record is None}
    large = max(sizes.values(), default=0) >= LARGE

    def finished(name: str, made: Floats) -> None:
        write.known(stage.work / "float" / name, made.files)
        records[name] = msgspec.to_builtins(made.component)
        stage.remember(name, records[name])
        progress(f"{name}: done", sum(record is not None for record in records.values()) / len(records) / 2)

    for name in () if large else sizes:
        progress(f"{name}: tracing", sum(record is not None for record in records.values()) / len(records) / 2)
        finished(name, export_float(source, name, stage.work / "float" / name, target, loras))
    left = sorted(sizes, key=lambda name: -sizes[name]) if large else []
    with _pool() as pool:
        running = {pool.submit(_export_again, origin, name, stage.work / "float" / name, target, loras): name for name in left}
        for future in as_completed(running):
            try:
                finished(running[future], future.result())
            except BrokenProcessPool as error:
                raise ResourceError(
                    f"{running[future]}: the process that exported it was killed, most likely for lack of memory: "
                    "close other programs and run it again"
                ) from error
    return {name: msgspec.convert(record, manifest.Component) for name, record in records.items()}


def _pool() -> ProcessPoolExecutor:
    """Two processes: tracing, which takes longest, uses one core."""
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),))


def _end_with(parent: int) -> None:
    """Has the system end this process with its parent (Linux): one that is killed must leave nobody behind who goes on writing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


@dataclass(frozen=True)
class Floats:
    """A component in float32, as it was written."""

    component: manifest.Component
    files: Mapping[str, manifest.File]
    """Size and hash by file name."""


def _export_again(origin: Origin, name: str, destination: Path, target: Target, loras: Sequence[Lora]) -> Floats:
    made = export_float(open_source(origin), name, destination, target, loras)
    calibrate.give_memory_back()
    return made


def export_float(source: Source, name: str, folder: Path, target: Target, loras: Sequence[Lora] = ()) -> Floats:
    """Writes the component `name` in float32 into `folder`, once it agrees with torch, or with the graph that the source has."""
    if source.graphs is not None and name in source.graphs.components:
        return Floats(graph_folder.export(source, name, folder, target), {})
    from . import components, reference  # torch: a process that has others trace never loads it
    from .trace import trace

    component = merge.merge(components.build(source, name), source, loras)
    model = graph.apply(trace(component), TARGETS[target])
    feeds = reference.cases(component)
    calibrate.give_memory_back()
    with ThreadPoolExecutor(1) as writer:
        files = writer.submit(write.save, model, folder)
        with reference.loaded(component):
            expected = reference.references(component, feeds)
        written = files.result()
    del model, files
    calibrate.give_memory_back()
    found = parity.compare(Pieces(folder, open_graph), feeds, expected)
    parity.require(name, "fp32", found, parity.BARS["fp32"])
    ports = {port.name: manifest.Tensor(port.dtype, port.shape) for port in component.inputs}
    given = {port.name: manifest.Tensor(port.dtype, port.shape) for port in component.outputs}
    return Floats(manifest.Component(f"{name}/{write.GRAPH}", "fp32", ports, given, found.db), written)


def bytes_of(source: Source, name: str) -> int:
    """What the weights of a component take in float32."""
    shapes = source.weights("vae" if name.startswith("vae") else name).shapes
    return 4 * sum(math.prod(shape) for shape in shapes.values())
