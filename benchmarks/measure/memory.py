"""Sample the memory of another process while it works, at no cost to it.

Two figures with different meanings. Resident memory (RSS) counts mapped weights too, which the system can drop at
any time and read again; anonymous memory it cannot. On Linux both come from /proc/PID/status: the same numbers as in
smaps_rollup, which takes sixteen times as long to read. The peak of RSS is the kernel's own (VmHWM), so that no spike is
missed. Elsewhere psutil is asked, if it is installed; Windows knows private memory, macOS has no figure for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from . import vram
from .machine_noise import psutil_or_none

INTERVAL = 0.01
"""Seconds between two samples."""


class Sample(NamedTuple):
    """Memory at a time of `time.perf_counter`, in bytes."""

    at: float
    rss: int
    anonymous: int | None
    peak_rss: int


class Peak(NamedTuple):
    """The most that was seen, in bytes; None where the system does not say."""

    rss: int | None
    anonymous: int | None


class Sampler:
    """Samples the process `pid` from when it is entered until it is left or the process is gone."""

    def __init__(self, pid: int, interval: float = INTERVAL) -> None:
        self.samples: list[Sample] = []
        self._read = _reader(pid)
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._device = vram.watch(pid)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._device:
            self._device.close()

    def peak(self) -> Peak:
        """The peak of the whole life of the process so far."""
        samples = self.samples
        if not samples:
            return Peak(None, None)
        return Peak(max(sample.peak_rss for sample in samples), _most(samples))

    def peak_within(self, intervals: Iterable[tuple[float, float]]) -> Peak:
        """The peak of the samples that were taken in any of `intervals` (start, end), one after the other; short ones may have none."""
        spans = list(intervals)
        starts = [start for start, _ in spans]
        inside: list[Sample] = []
        for sample in self.samples:
            place = bisect_right(starts, sample.at) - 1  # the last one that had begun
            if place >= 0 and sample.at <= spans[place][1]:
                inside.append(sample)
        return Peak(max((sample.rss for sample in inside), default=None), _most(inside))

    def over_time(self, points: int) -> tuple[tuple[float, int, int | None], ...]:
        """Seconds since the first sample, resident and anonymous memory: the largest of each of `points` equal spans that has samples."""
        samples = list(self.samples)
        if not samples:
            return ()
        first, length = samples[0].at, max(samples[-1].at - samples[0].at, 1e-9)
        spans: dict[int, list[Sample]] = {}
        for sample in samples:
            spans.setdefault(min(points - 1, int((sample.at - first) / length * points)), []).append(sample)
        return tuple((found[-1].at - first, max(sample.rss for sample in found), _most(found)) for found in spans.values())

    def peak_vram(self) -> int | None:
        """Peak device memory of the process by NVIDIA's driver, in bytes; None without an NVIDIA GPU."""
        return self._device.peak() if self._device else None

    def _sample(self) -> None:
        while self._read is not None:
            sample = self._read()
            if sample is None:
                return
            self.samples.append(sample)
            if self._stop.wait(self._interval):
                return


def _most(samples: Iterable[Sample]) -> int | None:
    return max((sample.anonymous for sample in samples if sample.anonymous is not None), default=None)


def _reader(pid: int) -> Any:
    """A function that samples `pid`, and returns None once it has ended; None if this system reports nothing."""
    if sys.platform == "linux":
        return lambda: _status(pid)
    psutil = psutil_or_none()
    return None if psutil is None else lambda: _asked(psutil, pid)


def _status(pid: int) -> Sample | None:
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:  # noqa: PTH123  # unbuffered: read a hundred times a second
            lines = dict(line.split(b":", 1) for line in file.readall().splitlines())
        rss, anonymous, peak = (int(lines[name].split()[0]) << 10 for name in (b"VmRSS", b"RssAnon", b"VmHWM"))
    except (OSError, KeyError, ValueError):  # gone, or a zombie, which has no memory any more
        return None
    return Sample(time.perf_counter(), rss, anonymous, peak)


def _asked(psutil: Any, pid: int) -> Sample | None:
    try:
        found = psutil.Process(pid).memory_info()
    except (psutil.Error, OSError):
        return None
    private = found.private if os.name == "nt" else None
    return Sample(time.perf_counter(), found.rss, private, getattr(found, "peak_wset", found.rss))
