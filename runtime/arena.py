"""The memory that operators on the CPU compute in: one arena for all sessions of the process, which can be given back.

A session with an arena of its own keeps it: what the U-Net computed in stays taken while the decoder takes its own. Only one
component runs at a time, so one arena for all of them is as large as the largest needs. It grows by what is asked for; ORT's
usual arena doubles, and then seldom finds a piece that is free from end to end to give back.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

_IDENTITY = (
    b'\x08\t:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)  # fmt: skip
"""An ONNX graph, x (1,) → y: an arena gives memory back at the end of a run, and of nothing else."""


def share(ort: Any, settings: Any) -> None:
    """Have the session that is opened with `settings` (ORT's SessionOptions) compute in the arena of all."""
    _sweeper(ort)
    settings.add_session_config_entry(*_SHARED)


def give_back(ort: Any) -> None:
    """Return what of the arena is not in use to the system; it grows again when it is needed."""
    _run(_sweeper(ort), ort)


_SHARED = ("session.use_env_allocators", "1")


@functools.cache
def _sweeper(ort: Any) -> Any:
    """A session in the arena, which it makes."""
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested = 1
    ort.create_and_register_allocator(where, ort.OrtArenaCfg({"arena_extend_strategy": same_as_requested}))
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry(*_SHARED)
    session = ort.InferenceSession(_IDENTITY, settings, providers=["CPUExecutionProvider"])
    _run(session, ort)  # an arena never gives back what it took first: that had better be little
    return session


def _run(session: Any, ort: Any) -> None:
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session.run(None, {"x": np.zeros(1, np.float32)}, options)
