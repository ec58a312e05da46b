"""Memory plans: which components are in memory at a time, and which plan fits into free memory.

| plan | what is in memory | cost |
|---|---|---|
| resident | every component that was used | memory |
| sequential | one component at a time | each opens again for each image |
| streamed | the same, weights mapped from disk as they are | U-Net calls take half as long again |

`auto` takes the first that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from ...models.bundle import Bundle
from ..names import look_up
from . import hardware

Plan = Literal["resident", "sequential", "streamed"]
PLANS: tuple[Plan, ...] = get_args(Plan)
AUTO = "auto"

OPENING = 1.5
"""The peak memory of opening a component, as a multiple of its files' bytes. Measured with a U-Net of SD 1.5's size: 1.3 in int8, 1.4 in
float32."""
OPEN = 1.4
"""The memory of an open component after a run, as the same multiple. Measured: 1.4, a third of it for intermediate tensors."""
DECODING = 5400
"""The memory of decoding the whole image at once, in bytes per pixel: measured 1.4 GB for 512 × 512."""
BANDED = 2000
"""The same for decoding in bands of rows: measured 0.54 GB, half of it for tensors between pieces, which grow with the image."""

WORKING = OPEN / 3
"""The intermediate tensors of a component whose weights are mapped from disk, as a multiple of its files' bytes."""
TILE_PIXELS = 320 * 320
"""Pixels of the tiles in which `streamed` decodes where there are no bands: `components.TILE` latent pixels a side."""


def choose_plan(name: str, bundle: Bundle, device_memory: int = 0) -> tuple[Plan, str]:
    """Return the plan of that name, or for `auto` the fastest that fits, and a note if that is not `resident`.

    `device_memory` is the bytes of the device's own memory, 0 if it has none: the plan then has to fit into both. A tenth is left to
    other programs.

    Raises:
        RequestError: unknown name; the message lists the known ones.
    """
    plans: dict[str, Plan | None] = {AUTO: None, **{plan: plan for plan in PLANS}}
    named = look_up("memory plan", name, plans, plans)
    if named is not None:
        return named, ""
    free = hardware.memory()
    plan: Plan = "resident" if free is None else fitting(estimate(bundle), free[0])
    note = "" if free is None else f"memory: {free[0] / 2**30:.1f} GiB are free, so the plan is {plan}"
    if device_memory:
        on_device = fitting(estimate(bundle, banded=False), device_memory * 9 // 10)
        if PLANS.index(on_device) > PLANS.index(plan):
            plan, note = on_device, f"memory: the device has {device_memory / 2**30:.1f} GiB, so the plan is {on_device}"
    return plan, "" if plan == "resident" else note


def estimate(bundle: Bundle, width: int = 0, height: int = 0, *, banded: bool = True) -> dict[Plan, int]:
    """Return the bytes that each plan needs for an image of that size in pixels, by default the model's; nothing is opened.

    The process itself, about 0.07 GB, comes on top. With `banded` false, a decoder is not decoded in bands, as on a GPU.
    """
    sizes = [_bytes_of(bundle, component) for component in bundle.manifest.components]
    defaults, banded = bundle.manifest.defaults, banded and bool(bundle.manifest.components["vae_decoder"].pieces)
    return needed(sizes, (width or defaults.width) * (height or defaults.height), banded=banded)


def needed(sizes: Sequence[int], pixels: int, *, banded: bool) -> dict[Plan, int]:
    """Return the bytes that each plan needs for components of `sizes` bytes and an image of so many pixels, decoded in bands or whole."""
    decoding, largest = (BANDED if banded else DECODING) * pixels, max(sizes)
    pieces = decoding if banded else min(decoding, DECODING * TILE_PIXELS)
    return {
        "resident": round(OPEN * sum(sizes) + max((OPENING - OPEN) * largest, decoding)),
        "sequential": round(max(OPENING * largest, decoding)),
        "streamed": round(max(WORKING * largest, pieces)),
    }


def fitting(estimated: Mapping[Plan, int], free: int) -> Plan:
    """Return the fastest plan that fits into `free` bytes, and the leanest if none does."""
    for plan in PLANS:
        if estimated[plan] < free:
            return plan
    return "streamed"


def _bytes_of(bundle: Bundle, component: str) -> int:
    """Return the bytes of a component's files."""
    folder = bundle.path(bundle.manifest.components[component].graph).parent
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
