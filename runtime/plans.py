"""Which components are in memory at a time, and which plan fits into what a machine has free.

| plan | what is in memory | cost |
|---|---|---|
| resident | every component that was used | memory |
| sequential | one component at a time | each is opened again for each request |
| streamed | the same, weights mapped from disk as they are | U-Net calls take half as long again |

`auto` takes the first that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from ..models.bundle import Bundle
from ..models.errors import RequestError
from . import machine

Plan = Literal["resident", "sequential", "streamed"]
PLANS: tuple[Plan, ...] = get_args(Plan)

OPENING = 1.5
"""Memory that opening a component takes at its peak, as a multiple of its files' bytes; measured: 1.3 for the 8-bit U-Net of
SD 1.5's size, 1.4 for the one in float32."""
OPEN = 1.4
"""Memory that an open component keeps once it has run, likewise; measured: 1.4, a third of which is what it computes with."""
DECODING = 5400
"""Memory that decoding whole takes, in bytes a pixel: measured 1.4 GB for 512 × 512."""
BANDED = 2000
"""Likewise in bands: measured 0.54 GB, half of which is tensors between pieces, which grow with the picture."""


def choose_plan(name: str, bundle: Bundle) -> tuple[Plan, str]:
    """The plan of that name, or for `auto` the one that fits, and a note where that is not the fastest.

    Raises:
        RequestError: an unknown name.
    """
    for plan in PLANS:
        if name == plan:
            return plan, ""
    if name != "auto":
        raise RequestError(f"memory plan {name!r} is unknown: expected auto, {', '.join(PLANS)}")
    free = machine.memory()
    if free is None:
        return "resident", ""
    sizes = [_bytes_of(bundle, component) for component in bundle.manifest.components]
    defaults, decoder = bundle.manifest.defaults, bundle.manifest.components["vae_decoder"]
    plan = fitting(sizes, (BANDED if decoder.pieces else DECODING) * defaults.width * defaults.height, free[0])
    return plan, "" if plan == "resident" else f"memory: {free[0] / 2**30:.1f} GiB are free, so the plan is {plan}"


def fitting(sizes: Sequence[int], decoding: int, free: int) -> Plan:
    """The fastest plan that `free` bytes suffice for, with components of `sizes` bytes and pictures whose decoding takes that many."""
    if OPEN * sum(sizes) + max((OPENING - OPEN) * max(sizes), decoding) < free:
        return "resident"
    return "sequential" if max(OPENING * max(sizes), decoding) < free else "streamed"


def _bytes_of(bundle: Bundle, component: str) -> int:
    """Bytes of the files of a component."""
    folder = bundle.path(bundle.manifest.components[component].graph).parent
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
