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
        head, at = data[at], at + 1
        if head == _BREAK and waiting[-1] == _UNTIL_BREAK:
            waiting.pop()
            continue
        if waiting[-1] != _UNTIL_BREAK:
            waiting[-1] -= 1
        major, low = head >> 5, head & 31
        if low == _ENDLESS and major in {_BYTES, _TEXT, _ARRAY, _MAP}:
            waiting.append(_UNTIL_BREAK)
            continue
        wide = 0 if low < 24 else 1 << (low - 24)
        if low > 27 or at + wide > len(data):
            return False
        value, at = (int.from_bytes(data[at : at + wide], "big") if wide else low), at + wide
        needed = value if major in {_BYTES, _TEXT, _ARRAY} else 2 * value if major == _MAP else 0
        if needed > len(data) - at:
            return False
        if major in {_BYTES, _TEXT}:
            at += value
        elif major in {_ARRAY, _MAP, _TAG}:
            waiting.append(1 if major == _TAG else needed)
    return False
