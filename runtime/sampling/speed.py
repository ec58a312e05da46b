"""Speed settings: approximations that reduce the work per image.

* *Reuse*: deep features of the U-Net are computed every n-th step and extrapolated in between: DeepCache (Ma et al. 2023,
  arXiv:2312.00858) with TaylorSeer's first-order extrapolation (Liu et al. 2025, arXiv:2503.06923). See `step_caching.reusing`.
* *Held guidance*: the negative prompt runs only in those full steps; the guidance difference is reused in between. See `guidance.guided`.
* *Strided tokens*: self-attention at the highest resolution uses every second pixel along each side as key and value (ToDo, Smith et al.
  2024, arXiv:2402.13573).

`export/subgraphs/step_caching.py` creates the graphs for reuse and strides. Cached values are kept for one image only.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from ..names import key_of, look_up

Speed = Literal["exact", "balanced", "fast"]
SPEEDS: tuple[Speed, ...] = get_args(Speed)


class Savings(NamedTuple):
    """The approximations of one speed. The defaults approximate nothing."""

    every: int = 1
    """Steps from one full call of the U-Net to the next, if the image has enough steps."""
    least: int = 3
    """The least number of segments of an image; with few steps, more of them are full."""
    held: bool = False
    """Whether the negative prompt runs only in full steps."""
    strided: bool = False
    """Whether self-attention over `unet_graphs.TOKENS` or more is strided."""


TABLE: Mapping[Speed, Savings] = MappingProxyType(
    {
        "exact": Savings(),
        "balanced": Savings(every=3, least=4, held=True),
        "fast": Savings(every=5, least=3, held=True, strided=True),
    }
)
"""Points on the measured Pareto front (docs/how-it-works/speed.md). On the demo model neither `balanced` nor `fast` loses a point of prompt
fidelity; 1 and 3 points are allowed. With a larger `every`, images differ more from the exact ones with the same seed."""


def find_speed(name: str) -> Speed:
    """Find a speed by its name.

    Raises:
        RequestError: unknown name; the message lists the known ones.
    """
    return look_up("speed", name, {key_of(speed): speed for speed in SPEEDS}, SPEEDS)
