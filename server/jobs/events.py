"""The numbered log of everything that happens, for pages that sleep, reload and come back."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

KEPT = 4096
"""Events that can be replayed."""
KEPT_BYTES = 8 << 20
"""Bytes of events that can be replayed."""


class Event(NamedTuple):
    """One event."""

    number: int
    kind: str
    data: str
    """JSON."""


class EventLog:
    """Events of this run of the server, numbered upwards from `first`, which is above every number of earlier runs.

    Fading events (progress, previews, the order of the queue) replace the one before them of the same key: a slow or late reader gets the
    latest alone.
    """

    def __init__(self, first: int) -> None:
        self._lock = threading.Lock()
        self._number = self._forgotten = first
        """Numbers of the last event, and of the last one that can no longer be replayed."""
        self._ring: deque[Event] = deque()
        self._bytes = 0
        self._latest: dict[tuple[str, ...], Event] = {}
        self._listeners: set[Listener] = set()

    @property
    def number(self) -> int:
        """The number of the last event."""
        return self._number

    @property
    def listeners(self) -> int:
        """Open streams."""
        return len(self._listeners)

    def publish(self, kind: str, data: object, *, fading: tuple[str, ...] | None = None) -> None:
        """Append an event, from any thread; `fading` is its key if only the latest one matters."""
        text = msgspec.json.encode(data).decode()
        with self._lock:
            self._number += 1
            event = Event(self._number, kind, text)
            if fading is not None:
                self._latest[fading] = event
            else:
                self._ring.append(event)
                self._bytes += len(text)
                while len(self._ring) > KEPT or (self._bytes > KEPT_BYTES and len(self._ring) > 1):
                    oldest = self._ring.popleft()
                    self._bytes -= len(oldest.data)
                    self._forgotten = oldest.number
            listeners = list(self._listeners)
        for listener in listeners:
            listener.wake()

    def wake(self) -> None:
        """Wake every listener without an event, so that it sees that the server stops."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.wake()

    def fade(self, job: str) -> None:
        """Drop the fading events of a job that ended."""
        with self._lock:
            for key in [key for key in self._latest if job in key]:
                del self._latest[key]

    def after(self, number: int) -> list[Event] | None:
        """The events after `number`, in order; None if some of them can no longer be replayed, or `number` is not of this log."""
        with self._lock:
            if not self._forgotten <= number <= self._number:
                return None
            found = [event for event in self._latest.values() if event.number > number]
            for event in reversed(self._ring):
                if event.number <= number:
                    break
                found.append(event)
        return sorted(found)

    @contextmanager
    def listen(self) -> Generator[Listener]:
        """A listener that is woken by every event, for the running event loop."""
        listener = Listener()
        with self._lock:
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)


class Listener:
    """Wakes a task of an event loop from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._called = False

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        if self._called:
            return
        self._called = True
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    async def wait(self) -> None:
        """Return once `wake` was called since the last return."""
        await self._event.wait()
        self._event.clear()
        self._called = False


class Watchers:
    """Those who wait for one job: woken when it has something to show, which is a partial image, an image, or its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Listener]] = {}

    @contextmanager
    def watch(self, job: str) -> Generator[Listener]:
        """A listener that `wake` wakes, for the running event loop."""
        listener = Listener()
        with self._lock:
            self._listeners.setdefault(job, []).append(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners[job].remove(listener)
                if not self._listeners[job]:
                    del self._listeners[job]

    def wake(self, job: str) -> None:
        """Wake those who watch `job`, from any thread."""
        with self._lock:
            listeners = list(self._listeners.get(job, ()))
        for listener in listeners:
            listener.wake()
