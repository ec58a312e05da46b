"""One combination of settings under measurement: its process, the results so far, and its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Self

import msgspec

from .memory import Sampler
from .worker import Drawn, Event, Failed, Job, Opened


class Contender:
    """A process that generates on request. Failures do not raise: `failure` holds the reason, and the process stops."""

    def __init__(self, job: Job, command: Sequence[str] = ()) -> None:
        self.job = job
        self._command = command or (sys.executable, "-m", f"{__package__}.worker", msgspec.json.encode(job).decode())
        self.opened: Opened | None = None
        self.drawn: list[Drawn] = []
        self.start_latency: float | None = None
        """Seconds from the start of the process until the bundle was open."""
        self.failure = ""
        self.memory: Sampler | None = None
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self.failure:  # of what it takes to start
            return self
        self._said = self._stack.enter_context(tempfile.TemporaryFile())
        started = time.perf_counter()
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said)
        self._stack.enter_context(self._process)
        self._stack.callback(self._process.kill)
        self.memory = self._stack.enter_context(Sampler(self._process.pid))
        event = self._next()
        if isinstance(event, Opened):
            self.opened, self.start_latency = event, event.ready_at - started
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def draw(self, steps: int | None = None) -> None:
        """Generate the job's request once more, in `steps` steps if given, and append the times to `drawn`."""
        if self.failure or self._process is None or self._process.stdin is None:
            return
        with suppress(BrokenPipeError):  # it has died since; what it says next, or does not say, tells how
            # Past the buffer, which would be flushed into the broken pipe once more.
            os.write(self._process.stdin.fileno(), f"{steps or ''}\n".encode())
        event = self._next()
        if isinstance(event, Drawn):
            self.drawn.append(event)

    def _next(self) -> Event | None:
        """The next message of the process; a failure, or the end of its output, becomes `failure`."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.failure = self._obituary(self._process.wait())
            return None
        event = msgspec.json.decode(line, type=Event)
        if isinstance(event, Failed):
            self.failure = event.message
        return event

    def _obituary(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            why = "most likely memory was not enough; measure smaller images, or --memory streamed" if name == "SIGKILL" else "it crashed"
            return f"the process was ended by {name}: {why}"
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return f"the process ended with code {code}: {lines[-1] if lines else 'it said nothing'}"
