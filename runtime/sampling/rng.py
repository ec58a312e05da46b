"""Random numbers: one generator per image, created from the seed and passed as an argument.

Three kinds, named after the images that they reproduce:

* `numpy`: NumPy's PCG64 with its ziggurat method, in float32. The default.
* `torch`: `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`. Checked against torch 2.13: the same numbers to 1e-6
  for every shape tried and over repeated calls, on both of torch's paths (below 16 numbers, and 16 or more).
* `nv`: `torch.randn(shape, device="cuda")` as A1111's random source "NV" computes it: Philox 4x32-10 (Salmon et al. 2011, "Parallel
  random numbers: as easy as 1, 2, 3") with the element's index as subsequence, one counter step per call, and the sine of Box-Muller on
  the first two words. Checked against the known-answer vectors of Random123 (the bits) and the numbers that A1111 publishes for seed 0
  (the layout), not against a GPU. CUDA itself differs for tensors with more numbers than the GPU has threads, far more than a latent has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...models.errors import RequestError
from ..types import Array


class Rng(Protocol):
    """A source of normal noise. Each call advances the state."""

    def normal(self, shape: Sequence[int]) -> Array:
        """Return independent standard normal numbers, float32, of that shape."""
        ...


KINDS = ("numpy", "torch", "nv")
SEED_LIMIT = 2**64
"""Seeds are 0 … 2⁶⁴ - 1. `torch` uses only the lowest 32 bits."""


def rng(kind: str, seed: int) -> Rng:
    """Return a generator of that kind at the start of its sequence.

    Raises:
        RequestError: an unknown kind, or a seed that is not a whole number from 0 to 2⁶⁴ - 1.
    """
    if isinstance(seed, (bool, float)) or not 0 <= seed < SEED_LIMIT:
        raise RequestError(f"seed: {seed!r}, expected a whole number from 0 to {SEED_LIMIT - 1}")
    makers: dict[str, Callable[[int], Rng]] = {"numpy": _NumPy, "torch": _Torch, "nv": _Nvidia}
    if kind not in makers:
        raise RequestError(f"random generator {kind!r} is not known: choose one of {', '.join(makers)}")
    return makers[kind](seed)


class _NumPy:
    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def normal(self, shape: Sequence[int]) -> Array:
        return self._generator.standard_normal(tuple(shape), dtype=np.float32)


class _Torch:
    """Mersenne Twister (Matsumoto & Nishimura 1998) and torch's two methods to derive normal numbers from it."""

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: float | None = None

    def normal(self, shape: Sequence[int]) -> Array:
        count = math.prod(shape)
        values = self._few(count) if count < 16 else self._many(count)
        return values.reshape(tuple(shape))

    def _words(self, count: int) -> NDArray[np.uint32]:
        return self._twister.randint(0, 2**32, size=count, dtype=np.uint32)

    def _few(self, count: int) -> Array:
        """Generate one by one in float64. Every second number is kept for the next one, even across calls."""
        result = np.empty(count, dtype=np.float32)
        for index in range(count):
            if self._kept is not None:
                result[index], self._kept = self._kept, None
                continue
            words = self._words(4).astype(np.uint64)
            bits = (words[0::2] << np.uint64(32) | words[1::2]) & np.uint64(2**53 - 1)
            angle, level = (bits.astype(np.float64) * 2.0**-53).tolist()
            radius = math.sqrt(-2.0 * math.log1p(-level))
            result[index] = radius * math.cos(2.0 * math.pi * angle)
            self._kept = radius * math.sin(2.0 * math.pi * angle)
        return result

    def _many(self, count: int) -> Array:
        """Generate blocks of 16 in float32. If the count is not a multiple of 16, the last 16 numbers are generated again."""
        result = self._uniform(count)
        whole = count - count % 16
        result[:whole] = _box_muller_blocks(result[:whole])
        if whole < count:
            result[-16:] = _box_muller_blocks(self._uniform(16))
        return result

    def _uniform(self, count: int) -> Array:
        return (self._words(count) & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)


def _box_muller_blocks(uniform: Array) -> Array:
    """Apply Box-Muller to each block of 16: the first 8 values are radii, the last 8 angles; cosines before sines."""
    blocks = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - blocks[:, 0]))
    angle = np.float32(2.0 * math.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


class _Nvidia:
    def __init__(self, seed: int) -> None:
        self._key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint64)
        self._calls = 0

    def normal(self, shape: Sequence[int]) -> Array:
        counter = np.zeros((4, math.prod(shape)), dtype=np.uint64)
        counter[0] = self._calls
        counter[2] = np.arange(counter.shape[1])
        self._calls += 1
        words = philox(counter, self._key)[:2].astype(np.float64)
        step, turn = 2.0**-32, 2.0**-31 * math.pi
        radius = np.sqrt(-2.0 * np.log(words[0] * step + step / 2.0))
        return (radius * np.sin(words[1] * turn + turn / 2.0)).astype(np.float32).reshape(tuple(shape))


def philox(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Philox 4x32 with 10 rounds: counters (4, n) and a key (2,), 32-bit numbers in uint64, give random words (4, n)."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = right >> shift ^ c1 ^ k0, right & mask, left >> shift ^ c3 ^ k1, left & mask
        k0, k1 = k0 + np.uint64(0x9E3779B9) & mask, k1 + np.uint64(0xBB67AE85) & mask
    return np.stack([c0, c1, c2, c3])


def slerp(start: Array, end: Array, fraction: float, axis: int | None = None) -> Array:
    """Interpolate from `start` to `end` along a great circle, so that noise keeps its variance. Float32, same shape.

    Without `axis` each array is one long vector; with it, each vector along the axis is interpolated separately. (Nearly) parallel or
    opposite vectors are interpolated linearly.
    """
    a, b = start.astype(np.float64), end.astype(np.float64)
    lengths = np.sqrt((a * a).sum(axis=axis, keepdims=True) * (b * b).sum(axis=axis, keepdims=True))
    cosine = np.clip((a * b).sum(axis=axis, keepdims=True) / np.maximum(lengths, 1e-300), -1.0, 1.0)
    angle = np.arccos(cosine)
    straight = np.abs(cosine) > 0.9995
    sine = np.where(straight, 1.0, np.sin(angle))
    from_start = np.where(straight, 1.0 - fraction, np.sin((1.0 - fraction) * angle) / sine)
    from_end = np.where(straight, fraction, np.sin(fraction * angle) / sine)
    return (from_start * a + from_end * b).astype(np.float32)


def variation(seeded: Rng, sub: Rng, shape: Sequence[int], strength: float) -> Array:
    """Return the initial noise of an image, blended by `strength` (0 … 1) toward that of a second seed, as A1111's subseed.

    Each column of the latent, (…, height, width), is interpolated separately: A1111's definition, so that its variations can be
    reproduced. `seeded` advances by one call, so later noise is that of the main seed.

    Raises:
        RequestError: the strength is outside 0 … 1.
    """
    if not 0.0 <= strength <= 1.0:
        raise RequestError(f"variation strength: {strength}, expected a number from 0 to 1")
    own = seeded.normal(shape)
    return own if strength == 0.0 else slerp(own, sub.normal(shape), strength, axis=-2)
