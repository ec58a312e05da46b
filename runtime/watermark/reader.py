"""Read watermarks: ours with the published key and a host's own, and TrustMark where its networks are at hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..provenance.marks import Marks
from ..provenance.soft_binding import Mark
from . import trustmark
from .detect import Found, detect
from .pattern import DEFAULT_KEY

ALGORITHM = "diffusette.lattice.1"


def read(image: Image.Image, keys: Iterable[str] = (), networks: trustmark.TrustMark | None = None) -> list[Mark]:
    """The watermarks in an RGB image.

    Args:
        image: at least 96 pixels a side; smaller ones hold nothing that can be read.
        keys: further keys to look for, beside the published one.
        networks: TrustMark's, to read it too.
    """
    pixels = np.asarray(image.convert("RGB"))
    found = [mark for key in dict.fromkeys((DEFAULT_KEY, *filter(None, keys))) if (mark := _ours(detect(pixels, key), key))]
    payload = None if networks is None or min(image.size) < trustmark.SMALLEST else networks.read(image.convert("RGB"))
    return found if payload is None else [*found, trustmark_mark(payload)]


def read_with(image: Image.Image, marks: Marks) -> list[Mark]:
    """The watermarks in an RGB image, with the key and the networks of `marks`.

    Raises:
        BundleError: TrustMark's networks cannot be opened.
    """
    word, _, folder = marks.watermark.partition("=")
    networks = trustmark.open_trustmark(Path(folder)) if word == "trustmark" else None
    return read(image, (marks.watermark_key,), networks)


def _ours(found: Found | None, key: str) -> Mark | None:
    if found is None:
        return None
    details = {
        "identifier": found.identifier,
        "chance": found.chance,
        "score": round(found.score, 1),
        "scale": round(found.scale, 3),
        "angle": round(found.angle, 2),
        "key": "published" if key == DEFAULT_KEY else "own",
    }
    return Mark(alg=ALGORITHM, value=value_of(found.identifier), details=details)


def value_of(identifier: int) -> bytes:
    """The identifier as a soft binding has it."""
    return f"{identifier:08x}".encode()


def trustmark_mark(payload: int) -> Mark:
    """A payload of TrustMark; the chance that one is found in any image is that of 35 check bits, 5 errors and 4 bits of schema."""
    identifier = trustmark.ours(payload)
    details = {"chance": 1.2e-4} if identifier is None else {"identifier": identifier, "chance": 2.2e-13}
    return Mark(alg=trustmark.ALGORITHM, value=trustmark.binding(payload), details=details)
