"""What a key and an identifier become: phases on a lattice of frequencies, and the tile that has them.

The mark is a tile of `TILE` × `TILE` pixels, repeated over the image, so its spectrum is a lattice. The points in a ring of low frequencies
have equal magnitude. A key deals them into groups: one for synchronisation, whose phases are fixed, and one for each symbol of the
identifier, whose phases are a row of a code book. Phases come from SHAKE-256 of the key: they are the same everywhere, and independent
of any image and of one another, which is what the bound on false alarms in `decode` needs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

TILE = 128
"""Pixels, at the size at which an image was marked."""
LOWEST, HIGHEST = 5, 21
"""The ring, in periods per tile: 6 to 26 pixels a period survive JPEG, halving and a mild blur, and look like grain."""
SYMBOLS, CODES = 5, 1024
"""Symbols of 10 bits: four hold the identifier (32 bits) and a checksum (8 bits), the fifth is their parity."""
SYNC_SHARE = 0.28
"""Share of the lattice that serves synchronisation."""
DEFAULT_KEY = "diffusette watermark 1"
"""Published, so that anyone can detect marks. Whoever chooses another key can read its marks alone."""

Complex = NDArray[np.complex64]
Floats = NDArray[np.float32]
Whole = TypeVar("Whole", int, NDArray[np.int64])


@dataclass(frozen=True)
class Pattern:
    """The lattice of a key: points as frequencies (y, x) in periods per tile, y above 0, and unit phases.

    Attributes:
        sync_at: (points, 2).
        sync: (points,).
        symbols_at: (`SYMBOLS`, points, 2).
        symbols: (`SYMBOLS`, `CODES`, points), a row of phases for each value of each symbol.
    """

    sync_at: NDArray[np.int64]
    sync: Complex
    symbols_at: NDArray[np.int64]
    symbols: Complex


def pattern_of(key: str = DEFAULT_KEY) -> Pattern:
    """Return the pattern of `key`."""
    return _pattern(key.encode())


@lru_cache(maxsize=4)
def _pattern(key: bytes) -> Pattern:
    ring = _ring()
    order = np.argsort(np.frombuffer(_stream(key, "order", 8 * len(ring)), "<u8"), kind="stable")
    each = int(len(ring) * (1 - SYNC_SHARE)) // SYMBOLS
    data, sync = np.split(ring[order], [SYMBOLS * each])
    phases = _phases(_stream(key, "symbols", SYMBOLS * CODES * each)).reshape(SYMBOLS, CODES, each)
    return Pattern(sync, _phases(_stream(key, "sync", len(sync))), data.reshape(SYMBOLS, each, 2), phases)


def _ring() -> NDArray[np.int64]:
    """The points, (points, 2): half a ring, because the other half mirrors it. The axes are left to the edges of images."""
    y, x = np.mgrid[0 : HIGHEST + 1, -HIGHEST : HIGHEST + 1]
    radius = np.hypot(y, x)
    chosen = (radius >= LOWEST) & (radius <= HIGHEST) & (y >= 2) & (np.abs(x) >= 2)
    return np.stack([y[chosen], x[chosen]], axis=1)


def _stream(key: bytes, use: str, size: int) -> bytes:
    return hashlib.shake_256(len(key).to_bytes(4, "big") + key + use.encode()).digest(size)


def _phases(data: bytes) -> Complex:
    angles = np.frombuffer(data, np.uint8) * (np.pi / 128)
    return np.exp(1j * angles).astype(np.complex64)


def symbols_of(identifier: int) -> list[int]:
    """The symbols of a 32-bit identifier."""
    word = (identifier << 8) | checksum(identifier)
    values = [(word >> shift) & (CODES - 1) for shift in (30, 20, 10, 0)]
    return [*values, values[0] ^ values[1] ^ values[2] ^ values[3]]


def checksum(identifier: Whole) -> Whole:
    """CRC-8 (polynomial 0x07, start 0x1D) of a 32-bit identifier, or of an array of them."""
    crc = identifier * 0 + 0x1D
    for shift in (24, 16, 8, 0):
        crc = crc ^ ((identifier >> shift) & 255)
        for _ in range(8):
            crc = ((crc << 1) & 255) ^ ((crc >> 7) * 7)
    return crc


@lru_cache(maxsize=8)
def tile_of(identifier: int, key: str = DEFAULT_KEY) -> Floats:
    """The tile of an identifier: (`TILE`, `TILE`), root mean square 1, peaks cut at about 2."""
    pattern = pattern_of(key)
    spectrum = np.zeros((TILE, TILE), np.complex64)
    spectrum[tuple(pattern.sync_at.T)] = pattern.sync
    for number, value in enumerate(symbols_of(identifier)):
        spectrum[tuple(pattern.symbols_at[number].T)] = pattern.symbols[number, value]
    tile = np.fft.ifft2(spectrum).real
    tile = np.clip(tile / tile.std(), -2.0, 2.0)
    return (tile / tile.std()).astype(np.float32)
