"""One thread that works through a bounded queue, for interfaces that serve one client. Cancelling reaches into a running model call."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from ...models.errors import Cancelled
from .error_codes import Refusal, refusal_of

MAX_JOBS = 64
"""Jobs that wait."""
MAX_BYTES = 256 << 20
"""Bytes of the requests that wait."""
_AGAIN = 0.02
"""Seconds between two tries to stop a job: a model call may begin just after one."""

Facts = Mapping[str, Any]


class Job:
    """One piece of work.

    Args:
        work: does it, calling `check` wherever it can stop, and returns facts about it.
        ended: called once with the facts, or with the refusal that says why there are none.
        cost: bytes that the job holds while it waits.
    """

    def __init__(self, work: Callable[[Job], Facts], ended: Callable[[Facts | Refusal], None], cost: int = 0) -> None:
        self.work = work
        self.ended = ended
        self.cost = cost
        self.stopping = threading.Event()

    def check(self) -> None:
        """Stop here if the job was cancelled.

        Raises:
            Cancelled: it was.
        """
        if self.stopping.is_set():
            raise Cancelled("the request was cancelled")


class LocalWorker:
    """Runs jobs one after the other; `interrupt` stops the model call that runs, if one does."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job, accepted: Callable[[int], None]) -> None:
        """Queue `job`. Before it can begin, `accepted` gets the number of jobs that come before it, the running one included.

        Raises:
            Refusal: the queue is full.
        """
        with self._changed:
            if self._closed:
                raise Refusal("cancelled", "the process is ending")
            if len(self._waiting) >= MAX_JOBS or sum(one.cost for one in self._waiting) + job.cost > MAX_BYTES:
                raise Refusal("queue_full", f"{len(self._waiting)} requests are waiting, expected at most {MAX_JOBS}; wait for one to end")
            accepted(len(self._waiting) + (self._running is not None))
            self._waiting.append(job)
            self._changed.notify_all()

    def position(self, job: Job) -> int | None:
        """How many jobs come before `job`: 0 while it runs; None once it has ended."""
        with self._changed:
            if self._running is job:
                return 0
            return self._waiting.index(job) + (self._running is not None) if job in self._waiting else None

    def cancel(self, job: Job) -> bool:
        """Stop `job` if it waits or runs; whether it did."""
        with self._changed:
            waited = job in self._waiting
            if waited:
                self._waiting.remove(job)
            elif self._running is job:
                job.stopping.set()
                threading.Thread(target=self._stop, args=(job,), name="stop", daemon=True).start()
            else:
                return False
        if waited:
            job.ended(Refusal("cancelled", "the request was cancelled before it began"))
        return True

    def close(self, seconds: float) -> None:
        """Cancel everything and wait for the thread, for at most that long."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)
        self._thread.join(seconds)

    def _stop(self, job: Job) -> None:
        """Stop the calls of `job` until it has ended."""
        with self._changed:
            while self._running is job:
                self._interrupt()
                self._changed.wait(_AGAIN)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            outcome: Facts | Refusal
            try:
                job.check()
                outcome = job.work(job)
            except Exception as error:  # noqa: BLE001  # every failure is an answer
                outcome = refusal_of(error)
                if outcome.code == "internal":
                    traceback.print_exc()
            with self._changed:
                self._running = None
                self._changed.notify_all()
            job.ended(outcome)

    def _next(self) -> Job | None:
        """The next job, as soon as there is one; None once the worker is closed."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            self._running = self._waiting.pop(0)
            return self._running
