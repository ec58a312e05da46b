"""Whether bytes are CBOR (RFC 8949), found without building anything: a length that lies costs nothing here.

The C2PA library takes as much memory as a length claims: a file of 5 KB takes a gigabyte, or ends the process.
"""

from __future__ import annotations

MAX_DEPTH = 64
"""Of items within items."""
MAX_ITEMS = 200_000
_BYTES, _TEXT, _ARRAY, _MAP, _TAG = 2, 3, 4, 5, 6
_BREAK, _ENDLESS, _UNTIL_BREAK = 0xFF, 31, -1


def is_well_formed(data: bytes) -> bool:
    """Whether `data` begins with a whole item, whose lengths are those of its content."""
    at, waiting = 0, [1]  # items that each open array or map still needs
    for _ in range(MAX_ITEMS):
        while waiting and not waiting[-1]:
            waiting.pop()
        if not waiting:
            return True
        if at >= len(data) or len(waiting) > MAX_DEPTH:
            return False
        if data[at] == _BREAK and waiting[-1] == _UNTIL_BREAK:
            waiting.pop()
            at += 1
            continue
        if waiting[-1] != _UNTIL_BREAK:
            waiting[-1] -= 1
        major, value, at = _head(data, at)
        if value > len(data) - at:
            return False
        if major in {_BYTES, _TEXT} and value != _UNTIL_BREAK:
            at += value
        else:
            waiting.append(value)
    return False


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """Read the head of an item: its major type, the bytes or items that follow, and where they begin. What cannot be read needs more
    than there is.
    """
    major, low = data[at] >> 5, data[at] & 31
    if low == _ENDLESS and major in {_BYTES, _TEXT, _ARRAY, _MAP}:
        return major, _UNTIL_BREAK, at + 1
    wide = 0 if low < 24 else 1 << (low - 24)
    after = at + 1 + wide
    if low > 27 or after > len(data):
        return major, len(data) + 1, at
    value = int.from_bytes(data[at + 1 : after], "big") if wide else low
    follow = {_BYTES: value, _TEXT: value, _ARRAY: value, _MAP: 2 * value, _TAG: 1}
    return major, follow.get(major, 0), after
