"""The seam to watermarks: what a watermark tells the signature and the detector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from PIL import Image


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A watermark in the pixels of an image."""

    alg: str
    """Name of the algorithm, as in C2PA's list of soft bindings where it is listed."""
    value: bytes
    """The identifier that the pixels carry, as the algorithm writes it into a soft binding."""
    details: dict[str, Any] = {}
    """Further facts for the detector, as JSON values."""


Embed = Callable[[Image.Image], tuple[Image.Image, Mark | None]]
"""Return the image with a watermark, and the watermark; the image itself and None where it cannot carry one."""
Detect = Callable[[Image.Image], Mark | None]
"""Return the watermark in an image, or None."""
