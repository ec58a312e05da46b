"""Adobe's TrustMark Q, with the networks that the user points at: encoder_Q.onnx and decoder_Q.onnx in one folder.

Bui, Agarwal and Collomosse 2023, arXiv:2311.18297. The encoder gets the image at 256 × 256 pixels from −1 to 1 and 100 bits and returns the
marked image; what it changed, without the mean of each channel, is enlarged and added. The decoder returns 100 numbers, positive for 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...models.errors import BundleError
from ..engine.providers import resolve as resolve_provider
from ..engine.session import Session, open_session
from . import bch

ALGORITHM = "com.adobe.trustmark.Q"
ENCODER, DECODER = "encoder_Q.onnx", "decoder_Q.onnx"
SIDE = 256
SMALLEST = 150
"""Pixels of the shorter side."""
_TAG = 29
"""Bits after the 32 of our identifier; they are 0, which tells our marks from those of others."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TrustMark:
    """The two networks."""

    encoder: Session
    decoder: Session

    def embed(self, image: Image.Image, identifier: int) -> Image.Image:
        """Mark an RGB image with a 32-bit identifier."""
        box = _square(image.size)
        part = image.crop(box)
        cover = _planes(part)
        feeds = {name: cover if len(one.shape) == 4 else _bits(identifier << _TAG) for name, one in self.encoder.inputs.items()}
        marked = np.clip(next(iter(self.encoder.run(feeds).values())), -1, 1)
        change = marked - cover
        change -= change.mean(axis=(2, 3), keepdims=True)
        planes = [np.asarray(Image.fromarray(one).resize(part.size, Image.Resampling.BILINEAR)) for one in change[0]]
        pixels = np.asarray(part, np.float32) + np.stack(planes, axis=-1) * np.float32(127.5)
        result = image.copy()
        result.paste(Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), box[:2])
        return result

    def read(self, image: Image.Image) -> int | None:
        """The 61 bits that an RGB image carries, or None."""
        (name,) = self.decoder.inputs
        values = next(iter(self.decoder.run({name: _planes(image.crop(_square(image.size)))}).values()))
        return bch.decode([int(value > 0) for value in values.ravel()])


def ours(payload: int) -> int | None:
    """The identifier in a payload that Diffusette wrote; None if another program did."""
    return payload >> _TAG if payload & ((1 << _TAG) - 1) == 0 else None


def binding(payload: int) -> bytes:
    """The payload as C2PA's soft binding has it: the schema, a star, the bits."""
    return f"{bch.SCHEMA}*{payload:0{bch.DATA}b}".encode()


def payload_of(identifier: int) -> int:
    """The payload with our identifier."""
    return identifier << _TAG


def open_trustmark(folder: Path) -> TrustMark:
    """Open the networks in `folder`.

    Raises:
        BundleError: a file is missing, cannot be run, or has other inputs and outputs.
    """
    provider = resolve_provider("cpu")
    sessions: list[Session] = []
    for name in (ENCODER, DECODER):
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name}: no such file; expected TrustMark's {ENCODER} and {DECODER} in that folder")
        sessions.append(open_session(folder / name, provider))
    encoder, decoder = sessions
    _check(folder / ENCODER, encoder.inputs, [(3, SIDE, SIDE), (bch.SIZE,)])
    _check(folder / DECODER, decoder.inputs, [(3, SIDE, SIDE)])
    _check(folder / DECODER, decoder.outputs, [(bch.SIZE,)])
    return TrustMark(encoder, decoder)


def _check(path: Path, found: Any, expected: list[tuple[int, ...]]) -> None:
    """Whether the shapes of tensors, after the batch, are the expected ones; dimensions without a size fit."""
    shapes = sorted((tuple(one.shape)[1:] for one in found.values()), key=len, reverse=True)
    fits = len(shapes) == len(expected) and all(
        len(a) == len(b) and all(one == two or not isinstance(one, int) for one, two in zip(a, b, strict=True))
        for a, b in zip(shapes, expected, strict=True)
    )
    if not fits:
        raise BundleError(f"{path}: tensors of shapes {shapes}; expected {expected}, as TrustMark Q has them")


def _square(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of an image that carries the mark: all of it, or the middle square if one side is more than twice the other."""
    width, height = size
    if max(size) <= 2 * min(size):
        return 0, 0, width, height
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _planes(image: Image.Image) -> Floats:
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray((small / np.float32(127.5) - 1).transpose(2, 0, 1)[None])


def _bits(payload: int) -> Floats:
    return np.array([bch.encode(payload)], np.float32)
