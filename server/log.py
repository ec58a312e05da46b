"""The log, which is stderr: a disk that is full must not take the server along."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(text: str) -> None:
    """Write a line to stderr, if it can be written."""
    with suppress(OSError, ValueError):  # ValueError: stderr is closed
        print(text, file=sys.stderr, flush=True)
