"""One memory arena for all CPU sessions of the process, which can be freed between components.

A session with its own arena keeps that memory: the U-Net's memory stays allocated while the decoder allocates its own. Only one component
runs at a time, so a shared arena is as large as the largest component needs. It grows by the requested size; ORT's default arena doubles,
and then rarely has a completely free region to return.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

_IDENTITY = (
    b'\x08\t:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)  # fmt: skip
"""An ONNX graph, x (1,) → y. Running it frees the arena, which is possible only at the end of a run."""


def share(ort: Any, settings: Any) -> None:
    """Make the session to be opened with `settings` (ORT's SessionOptions) use the shared arena."""
    _sweeper(ort)
    settings.add_session_config_entry(*_SHARED)


def give_back(ort: Any) -> None:
    """Return the unused memory of the arena to the system; the arena grows again on demand."""
    _run(_sweeper(ort), ort)


_SHARED = ("session.use_env_allocators", "1")


@functools.cache
def _sweeper(ort: Any) -> Any:
    """Create the arena, and a session in it."""
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested = 1
    ort.create_and_register_allocator(where, ort.OrtArenaCfg({"arena_extend_strategy": same_as_requested}))
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry(*_SHARED)
    session = ort.InferenceSession(_IDENTITY, settings, providers=["CPUExecutionProvider"])
    _run(session, ort)  # an arena never frees its first allocation, so the first one is made small
    return session


def _run(session: Any, ort: Any) -> None:
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session.run(None, {"x": np.zeros(1, np.float32)}, options)
