"""The record of an image: all the settings needed to reproduce it, as JSON."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from ...models.errors import RequestError
from ..prompt.parse import clean

MAX_RECORD = 1 << 20
"""Longer records, in bytes, are ignored."""


def tool() -> str:
    """Return the program's name and version. The version is in the parent package, which the runtime does not import."""
    return f"Diffusette {getattr(sys.modules[__name__.partition('.')[0]], '__version__', '')}".rstrip()


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The settings of one image. Fields that this version does not know are ignored."""

    prompt: str
    """The prompt as generated: cleaned by `parse.clean`, like `negative`."""
    negative: str = ""
    seed: int
    steps: int
    guidance: float
    sampler: str
    """A name of `samplers.SAMPLERS`."""
    schedule: str
    """A name of `schedules.SCHEDULES`."""
    width: int
    height: int
    model: str = ""
    model_hash: str = ""
    """The full SHA-256 in hex."""
    extra: dict[str, Any] = {}
    """Other request fields that differ from the default, by name; numbers, text, lists and dictionaries."""
    watermark: str = ""
    """The watermark in the pixels of the file: algorithm and identifier, or "off"; empty if the image is too small for one."""
    input_watermark: str = ""
    """The watermark of the image that this one started from."""
    version: str = msgspec.field(default_factory=tool)
    """The program that generated the image."""

    def __post_init__(self) -> None:
        for field, text in (("prompt", self.prompt), ("negative", self.negative)):
            msgspec.structs.force_setattr(self, field, clean(text)[0])


def to_json(record: Record) -> str:
    """Encode `record` as JSON. Equal records give equal text.

    Raises:
        RequestError: a value cannot be written as JSON, such as a lone surrogate.
    """
    try:
        return msgspec.json.encode(record, order="deterministic").decode()
    except (UnicodeError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise RequestError(f"metadata: the record cannot be stored ({error}); expected text and numbers") from error


def from_json(data: str | bytes) -> Record | None:
    """Decode the record in `data`; None if it is not a record or damaged."""
    try:
        return msgspec.json.decode(data, type=Record) if len(data) <= MAX_RECORD else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
