"""The algebra of low-rank changes: shape, rank and value, from the factors of a layer.

* LoRA (Hu et al. 2021, arXiv:2106.09685): up · down, for Linear and Conv; LoCon in Tucker form: up · middle · down;
* LoHa: (w1a · w1b) ⊙ (w2a · w2b), also in Tucker form (LyCORIS, Yeh et al. 2023, arXiv:2309.14859);
* DoRA: any of them, with the norms of the changed weight stored apart;
* LoKr: w1 ⊗ w2, each as a whole or as a product, w2 also in Tucker form (ibid.).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float32]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Shapes by the names of the factors."""


class Kind(NamedTuple):
    """A way to store the change of a layer."""

    expected: str
    """The factors that it needs, for messages."""
    complete: Callable[[Shapes], bool]
    """Whether the factors are those of the kind, with none missing and none too many."""
    rank: Callable[[Shapes], int | None]
    """The rank, 0 for a change without one, or None if the shapes do not match."""
    shape: Callable[[Shapes], Shape]
    """The shape of the change: (out, in), (out, in, height, width), or (out, the rest flattened)."""
    value: Callable[[Mapping[str, Real]], Real]
    """The change itself, before scaling."""


def _lora_complete(shapes: Shapes) -> bool:
    return shapes.keys() - {"middle"} == {"up", "down"}


def _lora_rank(shapes: Shapes) -> int | None:
    up, down = shapes["up"], shapes["down"]
    if up[2:] not in {(), (1, 1)}:
        return None
    if "middle" not in shapes:
        return down[0] if up[1] == down[0] else None
    middle = shapes["middle"]
    fits = len(middle) == 4 and down[2:] in {(), (1, 1)} and middle[:2] == (up[1], down[0])
    return down[0] if fits else None


def _lora_shape(shapes: Shapes) -> Shape:
    kernel = shapes["middle" if "middle" in shapes else "down"][2:]
    return (shapes["up"][0], shapes["down"][1], *kernel)


def _lora(factors: Mapping[str, Real]) -> Real:
    up, down, middle = factors["up"], factors["down"], factors.get("middle")
    wide = up.reshape(up.shape[:2])
    if middle is None:
        return wide @ down.reshape(down.shape[0], -1)
    return np.einsum("oi,ijhw,jc->ochw", wide, middle, down.reshape(down.shape[:2]), optimize=True)


def _loha_complete(shapes: Shapes) -> bool:
    return shapes.keys() - {"t1", "t2"} == {"w1_a", "w1_b", "w2_a", "w2_b"} and ("t1" in shapes) == ("t2" in shapes)


def _loha_rank(shapes: Shapes) -> int | None:
    first, second = ((shapes[f"w{side}_a"], shapes[f"w{side}_b"], shapes.get(f"t{side}")) for side in (1, 2))
    if not all(len(shape) == 2 for a, b, _ in (first, second) for shape in (a, b)):
        return None
    a, b, core = first
    if core is not None:
        return b[0] if first == second and len(core) == 4 and core[:2] == (a[0], b[0]) else None
    fits = a[1] == b[0] and second[0][1] == second[1][0] and (a[0], b[1]) == (second[0][0], second[1][1])
    return b[0] if fits else None


def _loha_shape(shapes: Shapes) -> Shape:
    a, b = shapes["w1_a"], shapes["w1_b"]
    return (a[1], b[1], *shapes["t1"][2:]) if "t1" in shapes else (a[0], b[1])


def _loha(factors: Mapping[str, Real]) -> Real:
    return _product(factors, 1) * _product(factors, 2)


def _product(factors: Mapping[str, Real], side: int) -> Real:
    """Return one side as the product of its factors; kernels stay kernels."""
    a, b, core = factors[f"w{side}_a"], factors[f"w{side}_b"], factors.get(f"t{side}")
    if core is not None:
        return np.einsum("ijhw,jc,io->ochw", core, b, a, optimize=True)
    return (a @ b.reshape(b.shape[0], -1)).reshape(-1, *b.shape[1:])


def _lokr_complete(shapes: Shapes) -> bool:
    """Whether each side is there in one form."""
    first = shapes.keys() & {"w1", "w1_a", "w1_b"}
    second = shapes.keys() - first
    return first in ({"w1"}, {"w1_a", "w1_b"}) and second in ({"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "t2"})


def _lokr_rank(shapes: Shapes) -> int | None:
    """The rank of the second side, if it is a product, or else of the first."""
    if not all(len(shape) == 2 for name, shape in shapes.items() if name not in {"w2", "w2_b", "t2"}):
        return None
    for side in (1, 2):
        a, b, core = (shapes.get(f"{name}{side}{end}") for name, end in (("w", "_a"), ("w", "_b"), ("t", "")))
        if a is None or b is None:
            continue
        fits = a[1] == b[0] if core is None else len(b) == 2 and len(core) == 4 and core[:2] == (a[0], b[0])
        if not fits:
            return None
    return shapes.get("w2_b", shapes.get("w1_b", (0,)))[0]


def _lokr_shape(shapes: Shapes) -> Shape:
    one, two = (_side(shapes, side) for side in (1, 2))
    return (one[0] * two[0], one[1] * two[1], *two[2:])


def _side(shapes: Shapes, side: int) -> Shape:
    if f"w{side}" in shapes:
        return shapes[f"w{side}"]
    a, b = shapes[f"w{side}_a"], shapes[f"w{side}_b"]
    return (a[1], b[1], *shapes[f"t{side}"][2:]) if f"t{side}" in shapes else (a[0], *b[1:])


def _lokr(factors: Mapping[str, Real]) -> Real:
    one, two = (factors[f"w{side}"] if f"w{side}" in factors else _product(factors, side) for side in (1, 2))
    return np.kron(one.reshape(*one.shape, *(1,) * (two.ndim - 2)), two)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "lora": Kind("up and down", _lora_complete, _lora_rank, _lora_shape, _lora),
        "loha": Kind("w1_a, w1_b, w2_a and w2_b", _loha_complete, _loha_rank, _loha_shape, _loha),
        "lokr": Kind("w1 and w2 of a LoKr", _lokr_complete, _lokr_rank, _lokr_shape, _lokr),
    }
)


def decomposed(weight: Real, delta: Real, magnitude: Real) -> Real:
    """The change by a DoRA (Liu et al. 2024, arXiv:2402.09353): magnitude · (W + ΔW) / ‖W + ΔW‖ - W.

    The norms are those of the outputs (peft, and LyCORIS with `wd_on_out`) or, if `magnitude` has one number for each input, of the inputs.
    """
    changed = weight + delta
    inputs = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] == weight.shape[1] > 1
    axes = tuple(axis for axis in range(changed.ndim) if axis != int(inputs))
    norm = np.sqrt((changed.astype(np.float64) ** 2).sum(axis=axes, keepdims=True))
    ratio = magnitude.reshape(norm.shape) / np.maximum(norm, np.finfo(np.float32).eps)
    return (ratio * changed - weight).astype(np.float32)


def shapes_of(factors: Mapping[str, NDArray[Any]]) -> Shapes:
    """Return the shapes of `factors`."""
    return {name: array.shape for name, array in factors.items()}
