"""Lines of JSON between two processes: read with a bounded length, written by a thread of their own.

Written lines are ASCII, so neither an encoding nor a line separator inside text can break them.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

MAX_LINE = 64 << 20
"""Bytes of a line: room for an image of 45 MB in base64."""
MAX_WAITING = 64 << 20
"""Bytes of lines that wait for the reader at the other end; beyond them, `send` waits too."""
_PIECE = 1 << 16


def read_lines(stream: BinaryIO, limit: int = MAX_LINE) -> Iterator[bytes | None]:
    """The lines of `stream` without their ends; None for a line of more than `limit` bytes, which is skipped without keeping it."""
    while line := stream.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line.rstrip(b"\r\n")
            continue
        while (piece := stream.readline(_PIECE)) and not piece.endswith(b"\n"):
            pass
        yield None


def claim_stdout() -> BinaryIO:
    """A stream to the standard output, which from now on nothing else reaches: prints of any library go to the standard error."""
    sys.stdout.flush()
    claimed = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(claimed, "wb")


class Outbox:
    """Sends messages in order, without making the sender wait for a slow reader; `broken` is called once nobody reads any more."""

    def __init__(self, stream: BinaryIO, broken: Callable[[], None], limit: int = MAX_WAITING) -> None:
        self._stream = stream
        self._broken = broken
        self._limit = limit
        self._patient = True
        self._waiting: dict[object, bytes] = {}
        self._bytes = 0
        self._closing = False
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()

    def send(self, message: Mapping[str, Any], *, latest: object = None) -> None:
        """Queue `message`. With `latest`, it replaces an unsent message of the same key, since only the newest matters."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._changed:
            while self._patient and self._bytes > self._limit:
                self._changed.wait()
            key = next(self._numbers) if latest is None else ("latest", latest)
            self._bytes += len(line) - len(self._waiting.pop(key, b""))
            self._waiting[key] = line
            self._changed.notify_all()

    def stop_waiting(self) -> None:
        """Let no `send` wait from now on: the process is about to end."""
        with self._changed:
            self._patient = False
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Send what waits, for at most that long."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)

    def _write(self) -> None:
        while (line := self._next()) is not None:
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):
                self._broken()
                return

    def _next(self) -> bytes | None:
        """The oldest line, as soon as there is one; None once the box is closed and empty."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            line = self._waiting.pop(next(iter(self._waiting)))
            self._bytes -= len(line)
            self._changed.notify_all()
            return line
