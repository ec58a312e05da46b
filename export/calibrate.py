"""What the export borrows from the runtime: sessions, and inputs recorded while real pictures are drawn.

The one module of the export that knows the runtime.
"""

from __future__ import annotations

from pathlib import Path

from ..runtime.providers import resolve
from ..runtime.session import Session, SessionOptions, open_session


def open_graph(graph: Path, *, threads: int = 0) -> Session:
    """The graph on the CPU."""
    return open_session(graph, resolve("cpu"), SessionOptions(threads=threads))
