"""A bounded walk over the wire format of protocol buffers, in bytes or a mapped file, and the little that is needed to write it.

Format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

MAX_FIELDS = 20_000_000
"""Fields that are visited before a file is refused; the largest graphs of the trade have a tenth."""
MAX_TEXT = 65_536
"""Bytes of a name."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""


class MalformedError(Exception):
    """The bytes are not what the format demands."""


class RefusedError(Exception):
    """The bytes are what the format demands, but no model of diffusion has such a thing."""


class Walker:
    """Reads fields out of `data`; counts them, so that a hostile file ends in bounded time."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data
        self.left = MAX_FIELDS

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at `at`, and where the next field begins."""
        data, value, shift = self.data, 0, 0
        while at < end and shift < 70:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
        raise MalformedError(f"a number is cut off at byte {at}")

    def message(self, at: int, end: int, single: frozenset[int]) -> Iterator[tuple[int, int, int, int]]:
        """Like `fields`, but the fields with the numbers `single` come once at most.

        Of a repeated field, one reader takes the last value and another merges all, so they would see different models.
        """
        seen = set[int]()
        for found in self.fields(at, end):
            number = found[0]
            if number in single:
                if number in seen:
                    raise MalformedError(f"field {number} at byte {found[2]} is there twice")
                seen.add(number)
            yield found

    def fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(field number, wire type, start, end) of each field of the message in `data[at:end]`; of a varint its value for the start."""
        data = self.data
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise MalformedError(f"it has more than {MAX_FIELDS:,} parts")
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = self.varint(at - 1, end)
            if not 8 <= tag < 1 << 32:  # other readers drop the upper bits, and find another field
                raise MalformedError(f"a field at byte {at} has the impossible tag {tag}")
            wire = tag & 7
            if wire == VARINT:
                start, at = self.varint(at, end)
                yield tag >> 3, wire, start, at
                continue
            size = data[at] if at < end else -1
            if wire == BYTES and 0 <= size < 128:  # by far the most common, so written out
                at += 1
            else:
                size, at = self.size(wire, at, end)
            start, at = at, at + size
            if at > end:
                raise MalformedError(f"a field at byte {start} claims {size} bytes of {end - start}")
            yield tag >> 3, wire, start, at

    def size(self, wire: int, at: int, end: int) -> tuple[int, int]:
        """Bytes of a field that is no varint, and where they begin."""
        if wire == BYTES:
            return self.varint(at, end)
        if wire in {FIXED64, FIXED32}:
            return (8 if wire == FIXED64 else 4), at
        raise MalformedError(f"no protocol buffer at byte {at}")

    def text(self, start: int, end: int) -> str:
        """The text in `data[start:end]`."""
        if end - start > MAX_TEXT:
            raise MalformedError(f"a name of {end - start} bytes at byte {start}")
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError:
            raise MalformedError(f"a name at byte {start} is not UTF-8") from None


def encode_varint(value: int) -> bytes:
    """`value`, which is not negative."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_field(number: int, payload: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return b"".join([encode_varint(number << 3 | BYTES), encode_varint(len(payload)), payload])
