"""Benchmark environment: hardware, software, and background load.

Two things are watched. A fixed matrix product is timed before, between and after the images: on a quiet machine it always
takes the same time. And the processor time that went to other programs, or was taken away by the host of a virtual machine,
is counted by the system itself; the load average is recorded, but judged is what the others really used.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ...runtime import doctor
from ...runtime.engine import providers

SPREAD = 0.15
"""Largest spread of the matrix product's timings, as a share of the fastest."""
OTHERS = 0.10
"""Largest share of processor time for other programs."""
_SIDE, _PRODUCTS, _TIMINGS = 512, 16, 5


class Machine(doctor.Machine, frozen=True, kw_only=True):
    """The computer as `doctor` describes it, and its software."""

    governor: str
    """Linux's CPU frequency governor; empty if unknown."""
    packages: dict[str, str]


class Noise(msgspec.Struct, frozen=True):
    """Background load of the machine."""

    probes: tuple[float, ...]
    """Seconds of the matrix product, each the median of several."""
    spread: float
    """(slowest - fastest) / fastest of `probes`."""
    others: float | None
    """Share of all processor time that other programs used, or that the host took away; none where the system does not say."""
    load_before: float | None
    """Load average over one minute."""
    load_after: float | None
    reasons: tuple[str, ...] = ()
    """Why timings that were taken at different times cannot be compared; empty on a quiet machine."""

    @property
    def disturbed(self) -> str:
        """Why not even those that were taken in turns can be compared; empty where other programs took little."""
        if self.others is None or self.others <= OTHERS:
            return ""
        return f"{self.others:.0%} of the processor time went to others (limit {OTHERS:.0%})"


def describe() -> Machine:
    """The machine as it is now."""
    packages = {**doctor.installed_packages(), **providers.distributions()}
    return Machine(**msgspec.structs.asdict(doctor.this_machine()), governor=_governor(), packages=packages)


def judge(probes: Sequence[float], others: float | None, load_before: float | None = None, load_after: float | None = None) -> Noise:
    """Judge the background load from `probes` and `others`; see `Noise`."""
    spread = (max(probes) - min(probes)) / min(probes) if probes else 0.0
    noise = Noise(tuple(probes), spread, others, load_before, load_after)
    unsteady = f"a fixed computation took up to {spread:.0%} longer at one time than at another (limit {SPREAD:.0%})"
    reasons = (unsteady if spread > SPREAD else "", noise.disturbed)
    return msgspec.structs.replace(noise, reasons=tuple(reason for reason in reasons if reason))


class Watch:
    """Watches the machine from when it is made. Probe it while nothing that is measured runs."""

    def __init__(self) -> None:
        self._probes: list[float] = []
        self._load = _load()
        self._started = _usage()
        self._now = self._started

    def probe(self) -> None:
        """Time the matrix product once more."""
        matrix = np.full((_SIDE, _SIDE), 1.0 / _SIDE, dtype=np.float32)
        timings: list[float] = []
        for _ in range(_TIMINGS):
            started, product = time.perf_counter(), matrix
            for _ in range(_PRODUCTS):
                product = product @ matrix
            timings.append(time.perf_counter() - started)
        self._probes.append(float(np.median(timings)))

    def count(self) -> None:
        """Read the system's accounts. Processes that were started count as others until they have ended."""
        self._now = _usage()

    def noise(self) -> Noise:
        """The background load up to the last `probe` and `count`."""
        others = None if self._started is None or self._now is None else _share(self._started, self._now)
        return judge(self._probes, others, self._load, _load())


class _Usage(NamedTuple):
    """Seconds of processor time so far: of all processors, idle or not; of all programs; of this one and its ended children."""

    total: float
    busy: float
    own: float


def _share(before: _Usage, after: _Usage) -> float | None:
    total = after.total - before.total
    if total <= 0.0:
        return None
    return max(0.0, (after.busy - before.busy) - (after.own - before.own)) / total


def _usage() -> _Usage | None:
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    if sys.platform == "linux":
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]  # what guests use is part of "user"
            seconds = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
        except (OSError, ValueError):
            return None
        idle = seconds[3] + seconds[4]
        return _Usage(sum(seconds), sum(seconds) - idle, own)
    psutil = psutil_or_none()
    if psutil is None:
        return None
    found = psutil.cpu_times()
    return _Usage(sum(found), sum(found) - found.idle, own)


def psutil_or_none() -> Any:
    """The module psutil, or None if it is not installed; Linux does not need it."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return ""
