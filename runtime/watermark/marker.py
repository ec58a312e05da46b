"""Watermark the images that leave: with our own mark or TrustMark, never over one that is there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...models.errors import RequestError
from ..provenance.marks import Marks
from ..provenance.soft_binding import Mark
from . import reader, trustmark
from .embed import SMALLEST, embed
from .settings import Settings, settings_of


class Marked(NamedTuple):
    """An image on its way into a file.

    Attributes:
        image: RGB, with a watermark.
        mark: the watermark; None if there is none.
        record: what the image's record says of it: algorithm and identifier, "off", or nothing for small images.
        carried: the watermark of the image that this one started from, likewise.
    """

    image: Image.Image
    mark: Mark | None
    record: str = ""
    carried: str = ""


def name_of(mark: Mark) -> str:
    """A watermark as records name it."""
    return f"{mark.alg}:{mark.value.decode('ascii', 'replace')}"


class Marker:
    """Writes watermarks by one setting. Threads may share it."""

    def __init__(self, marks: Marks) -> None:
        """Open what the setting needs when the first image comes."""
        self.marks = marks
        self._lock = threading.Lock()
        self._settings: Settings | None = None
        self._networks: trustmark.TrustMark | None = None
        self._parent: tuple[bytes, str] = (b"", "")

    @property
    def settings(self) -> Settings:
        """The settings. The first call makes this installation's identifier, and opens TrustMark's networks.

        Raises:
            RequestError: an identifier that is not a number of 32 bits.
            BundleError: TrustMark's networks cannot be opened.
        """
        with self._lock:
            if self._settings is None:
                settings = settings_of(self.marks)
                self._networks = None if settings.trustmark is None else trustmark.open_trustmark(settings.trustmark)
                self._settings = settings
            return self._settings

    def check_size(self, size: Callable[[], tuple[int, int]]) -> None:
        """Check the width and height of an image, which `size` returns, if a watermark was asked for.

        Raises:
            RequestError: the image is too small for it.
        """
        if self.settings.asked and min(sides := size()) < self._smallest():
            raise RequestError(
                f"watermark: {sides[0]}×{sides[1]} pixels; expected at least {self._smallest()} a side, or watermark auto or off"
            )

    def _smallest(self) -> int:
        return SMALLEST if self._networks is None else trustmark.SMALLEST

    def mark(self, image: Image.Image, *, edited: bool = False, parent: bytes | None = None) -> Marked:
        """Watermark an RGB image, unless it is too small or still carries the watermark of the image that it started from.

        Args:
            image: any size.
            edited: whether it started from another image.
            parent: the file of that image, if it is at hand.

        Raises:
            RequestError: the image is too small, and a watermark was asked for.
        """
        settings = self.settings
        self.check_size(lambda: image.size)
        large = min(image.size) >= self._smallest()
        if not settings.on or not large:
            return Marked(image, None, "off" if large else "")
        carried = "" if parent is None else self._carried(parent)
        kept = reader.read(image, (settings.key,), self._networks) if edited else []
        if kept:
            return Marked(image, kept[0], name_of(kept[0]), carried or name_of(kept[0]))
        if self._networks is not None:
            mark = reader.trustmark_mark(trustmark.payload_of(settings.identifier))
            return Marked(self._networks.embed(image, settings.identifier), mark, name_of(mark), carried)
        mark = Mark(alg=reader.ALGORITHM, value=reader.value_of(settings.identifier))
        marked = Image.fromarray(embed(np.asarray(image), settings.identifier, settings.key))
        return Marked(marked, mark, name_of(mark), carried)

    def _carried(self, parent: bytes) -> str:
        """The watermark in the file `parent`; that of the last one is remembered."""
        known, found = self._parent
        if known is not parent:
            from ..images import image_io

            marks = reader.read(image_io.read(parent, "init"), (self.settings.key,), self._networks)
            found = name_of(marks[0]) if marks else ""
            self._parent = (parent, found)
        return found
