"""Measure a start from a cold disk: the bundle's files are dropped from the system's cache first, which needs only ownership.

Only Linux can drop a file's pages (posix_fadvise) and report what is left of them (mincore). Python and its packages stay
cached: only the bundle is cold.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import msgspec

from .contender import Contender
from .worker import Job


class Cold(msgspec.Struct, frozen=True):
    """Times of a first image with no byte of the bundle in memory."""

    start_latency: float
    """Seconds from the start of the process to the open bundle."""
    first_latency: float
    """Of the first request, which opens the graphs."""
    cached: float
    """Share of the bundle's bytes that the system kept in memory all the same; near 0, or the start was not cold."""


def measure_cold(job: Job) -> Cold | None:
    """Start once from a cold disk and draw once; None where the system cannot drop files, or the job fails."""
    if sys.platform != "linux" or job.folder is None:
        return None
    files = [path for path in Path(job.folder).rglob("*") if path.is_file()]
    for path in files:
        drop(path)
    left, total = sum(resident(path) for path in files), sum(path.stat().st_size for path in files)
    with Contender(msgspec.structs.replace(job, picture="")) as contender:
        contender.draw()
    if contender.start_latency is None or not contender.drawn:
        return None
    return Cold(contender.start_latency, contender.drawn[0].latency, min(1.0, left / max(1, total)))


def drop(path: Path) -> None:
    """Take `path` out of the system's cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)  # pages that are not written yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def resident(path: Path) -> int:
    """Bytes of `path` that are in memory."""
    size = path.stat().st_size
    if not size:
        return 0
    pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    found = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), found)
        del first  # or the map cannot be closed
    return size if failed else sum(page & 1 for page in found) * mmap.PAGESIZE
