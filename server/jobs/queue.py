"""The queue: bounded, fair between clients, editable, and written down at every change.

One entry runs, the others wait in their order (order.py); every change is an event.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..limits import Limits
from .events import EventLog, Watchers
from .order import Order
from .records import Entry, Failure, Image, Job, Options, Progress, Refused, Status
from .store import Store

MAX_BEGUN = 5
"""Times that a job is begun without one image before it is set aside: each of them ended the process."""


class Queue:
    """The jobs that wait and the one that runs. Every method may be called from any thread."""

    def __init__(self, store: Store, events: EventLog, limits: Limits) -> None:
        self.watchers = Watchers()
        self.running: Entry | None = None
        self.stopping = False
        self.interrupt: Callable[[], None] = lambda: None
        """Stops the running entry's model call; the worker sets it."""
        self.ended: Callable[[Entry], None] = lambda _entry: None
        """Called when an entry has ended, whether it ran or not."""
        self.counts: dict[str, int] = {"done": 0, "failed": 0, "cancelled": 0}
        self._store = store
        self._events = events
        self._limits = limits
        self._changed = threading.Condition(threading.RLock())
        self._waiting = Order()
        self._saving: list[Entry] = []
        """Entries that no longer run, whose last image is on its way to the disk."""

    def restore(self, entries: list[Entry]) -> None:
        """Take up the jobs of an earlier run.

        Those whose client waited for the answer end, since it is gone, and so does a job that ended the process each time it began.
        """
        with self._changed:
            for entry in entries:
                if entry.options.waits:
                    self._end([entry], "cancelled", Failure("cancelled", "the server stopped while the client waited"))
                elif entry.begun >= MAX_BEGUN:
                    self._end([entry], "failed", _DEADLY)
                else:
                    entry.job = msgspec.structs.replace(entry.job, status="queued", started=None, resolved=None)
                    self._waiting.append(entry)
            self._store.put_jobs(self._waiting.renumber())

    # What clients do

    def submit(self, job: Job, options: Options, *, front: bool = False) -> Job:
        """Put a job into the queue: at the front, or where its client's turn comes.

        Raises:
            Refused: the queue or the disk is full, or the server is stopping.
        """
        with self._changed:
            if self.stopping:
                raise Refused("stopping", "the server is stopping: try again when it is back")
            replaced = [one for one in self._waiting if job.live and one.job.live and one.job.client == job.client]
            if len(self._waiting) - len(replaced) >= self._limits.queue:
                raise Refused("queue_full", f"the queue is full ({self._limits.queue} jobs): try again when some have ended")
            for entry in replaced:
                self._waiting.remove(entry)
            self._end(replaced, "cancelled")
            running = self.running
            if job.live and running is not None and running.job.live and running.job.client == job.client:
                self._stop(running)
            index = 0 if front else self._waiting.turn(job.client, running.job.client if running else None)
            entry = Entry(job, options)
            try:
                self._store.put_jobs(self._waiting.insert(entry, index))
            except BaseException:
                self._waiting.remove(entry)
                raise
            self._tell(entry)
            self._tell_order()
            self._changed.notify_all()
            return self._shown(entry)

    def cancel(self, identifier: str) -> Job:
        """Stop a running job, or remove one that waits. A job that has ended stays as it is.

        Raises:
            Refused: there is no such job.
        """
        with self._changed:
            entry = self._find(identifier)
            if entry is None:
                return self.job(identifier)
            if entry is self.running:
                self._stop(entry)
            elif entry not in self._saving:
                self._waiting.remove(entry)
                self._end([entry], "cancelled")
                self._tell_order()
            return self._shown(entry)

    def skip(self) -> None:
        """Let the running job give up its current image and go on with the next one."""
        with self._changed:
            if self.running is not None and self.running.job.kind == "generate":
                self.running.skipped.set()
                self.interrupt()

    def stop_running(self) -> None:
        """Cancel the running job, if there is one."""
        with self._changed:
            if self.running is not None:
                self._stop(self.running)

    def move(self, identifier: str, before: str | None) -> list[Job]:
        """Move a waiting job before another one, or to the end; returns the waiting jobs in their order.

        Raises:
            Refused: one of them does not wait.
        """
        with self._changed:
            entry = self._waiting_entry(identifier)
            other = None if before is None else self._waiting_entry(before)
            if entry is not other:
                self._waiting.remove(entry)
                index = None if other is None else self._waiting.position(other)
                self._place(entry, len(self._waiting) if index is None else index)
            return self._shown_waiting()

    def now(self, identifier: str) -> Job:
        """Cancel the running job and run this one next.

        Raises:
            Refused: it does not wait.
        """
        with self._changed:
            entry = self._waiting_entry(identifier)
            self._waiting.remove(entry)
            self._place(entry, 0)
            self.stop_running()
            return self._shown(entry)

    def clear(self) -> None:
        """Remove every job that waits."""
        with self._changed:
            self._end(self._waiting.clear(), "cancelled")
            self._tell_order()

    # What anybody asks

    def job(self, identifier: str) -> Job:
        """The job of that id, whatever its state.

        Raises:
            Refused: there is none.
        """
        with self._changed:
            entry = self._find(identifier)
            if entry is not None:
                return self._shown(entry)
        found = self._store.job(identifier)
        if found is None:
            raise Refused("not_found", "no such job; it may have been too long ago")
        return found

    def current(self) -> list[Job]:
        """The jobs that run or are being saved, and those that wait, in their order."""
        with self._changed:
            return [*(entry.job for entry in self._begun()), *self._shown_waiting()]

    def load(self) -> tuple[Entry | None, int]:
        """The running entry, and how many jobs wait."""
        with self._changed:
            return self.running, len(self._waiting)

    # What the worker does

    def take(self) -> Entry | None:
        """The next job, running from now on; waits for one. None when the server stops."""
        with self._changed:
            while not self._waiting and not self.stopping:
                self._changed.wait()
            if self.stopping:
                return None
            entry = self.running = self._waiting.take()
            entry.begun += 1
            entry.job = msgspec.structs.replace(entry.job, status="running", started=time.time())
            self._store.keep_jobs([entry])
            self._tell(entry)
            self._tell_order()
            return entry

    def update(self, entry: Entry, **changes: Any) -> None:
        """Change fields of a running job and tell it."""
        with self._changed:
            entry.job = msgspec.structs.replace(entry.job, **changes)
            self._tell(entry)

    def progress(self, entry: Entry, progress: Progress) -> None:
        """Tell how far the running job is."""
        with self._changed:
            entry.job = msgspec.structs.replace(entry.job, progress=progress)
        self._events.publish("progress", {"job": entry.job.id, **msgspec.structs.asdict(progress)}, fading=("progress", entry.job.id))

    def note(self, entry: Entry, text: str) -> None:
        """Add a note to the running job."""
        with self._changed:
            entry.job = msgspec.structs.replace(entry.job, notes=(*entry.job.notes, text))
        self._events.publish("note", {"job": entry.job.id, "text": text})

    def add_image(self, entry: Entry, image: Image) -> None:
        """Add an image that is in the gallery."""
        with self._changed:
            entry.job = msgspec.structs.replace(entry.job, images=(*entry.job.images, image))
            if entry.begun:  # the job does not end the process: what it began before does not count
                entry.begun = 0
                self._store.keep_jobs([entry])
        self._events.publish("image", {"job": entry.job.id, "image": image})
        self.watchers.wake(entry.job.id)

    def save(self, entry: Entry) -> None:
        """Make room for the next job: of the running one only the last image is still to be written."""
        with self._changed:
            self.running = None
            self._saving.append(entry)

    def finish(self, entry: Entry, status: Status, error: Failure | None = None) -> None:
        """End a job that runs or is being saved."""
        with self._changed:
            if entry is self.running:
                self.running = None
            else:
                self._saving.remove(entry)
            self._end([entry], status, error)

    def put_back(self, entry: Entry) -> None:
        """Let the running job be the first that waits, for the next run of the server."""
        with self._changed:
            self.running = None
            entry.begun = max(0, entry.begun - 1)
            entry.job = msgspec.structs.replace(entry.job, status="queued", started=None, progress=None)
            self._store.keep_jobs(self._waiting.insert(entry, 0))

    def stop(self) -> None:
        """Let `take` return None, and refuse new jobs."""
        with self._changed:
            self.stopping = True
            if self.running is not None:
                self.interrupt()
            self._changed.notify_all()

    # Inside

    def _stop(self, entry: Entry) -> None:
        entry.cancelled.set()
        self.interrupt()

    def _end(self, entries: list[Entry], status: Status, error: Failure | None = None) -> None:
        for entry in entries:
            entry.job = msgspec.structs.replace(entry.job, status=status, ended=time.time(), progress=None, error=error)
            self.counts[status] += 1
        self._store.keep_jobs(entries)
        for entry in entries:
            self.ended(entry)
            self._events.fade(entry.job.id)
            self._events.publish("job", {"job": entry.job})
            self.watchers.wake(entry.job.id)

    def _begun(self) -> list[Entry]:
        return [*self._saving, *([self.running] if self.running else [])]

    def _find(self, identifier: str) -> Entry | None:
        begun = next((entry for entry in self._begun() if entry.job.id == identifier), None)
        return begun or self._waiting.find(identifier)

    def _waiting_entry(self, identifier: str) -> Entry:
        entry = self._waiting.find(identifier)
        if entry is None:
            raise Refused("not_found", "no such job in the queue; it may have started or ended")
        return entry

    def _place(self, entry: Entry, index: int) -> None:
        self._store.keep_jobs(self._waiting.insert(entry, index))
        self._tell_order()

    def _shown(self, entry: Entry) -> Job:
        return msgspec.structs.replace(entry.job, position=self._waiting.position(entry))

    def _shown_waiting(self) -> list[Job]:
        return [msgspec.structs.replace(entry.job, position=index) for index, entry in enumerate(self._waiting)]

    def _tell(self, entry: Entry) -> None:
        self._events.publish("job", {"job": self._shown(entry)})

    def _tell_order(self) -> None:
        self._events.publish("queue", {"order": [entry.job.id for entry in self._waiting]}, fading=("queue",))


_DEADLY = Failure(
    "model_error",
    f"the server ended {MAX_BEGUN} times while it ran this job, and no image came of it, so it was set aside: read the server's log, "
    "then try a smaller image, or another --memory or --provider",
)
