"""The error correction of TrustMark's payload BCH_5: 61 bits of data, 35 bits that correct 5 errors, 4 bits that name the schema.

A binary BCH code over GF(2⁷) with the polynomial x⁷ + x³ + 1, systematic, the first bit the highest power; the data are filled up with
zeros to whole bytes before the check bits are computed (Bose and Ray-Chaudhuri 1960; Berlekamp 1968 for the decoder).
"""

from __future__ import annotations

from functools import cache

DATA, CHECK, ERRORS, SCHEMA = 61, 35, 5, 1
SIZE = DATA + CHECK + 4
_FILLED = 64
_ORDER, _POLYNOMIAL = 127, 0b10001001
_LENGTH = _FILLED + CHECK


@cache
def _tables() -> tuple[list[int], list[int]]:
    """Powers of the primitive element, twice around, and logarithms."""
    powers, logarithms, value = [0] * (2 * _ORDER), [0] * (_ORDER + 1), 1
    for exponent in range(_ORDER):
        powers[exponent] = powers[exponent + _ORDER] = value
        logarithms[value] = exponent
        value <<= 1
        value ^= _POLYNOMIAL if value > _ORDER else 0
    return powers, logarithms


def _times(a: int, b: int) -> int:
    powers, logarithms = _tables()
    return powers[logarithms[a] + logarithms[b]] if a and b else 0


@cache
def _generator() -> int:
    """The product of x − α^i over i = 1, 3, …, 9 and their conjugates, as bits."""
    roots = {(odd << shift) % _ORDER for odd in range(1, 2 * ERRORS, 2) for shift in range(7)}
    product = [1]
    for root in roots:
        power = _tables()[0][root]
        product = [a ^ _times(b, power) for a, b in zip([0, *product], [*product, 0], strict=True)]
    return sum(bit << at for at, bit in enumerate(product))


def _check(data: int) -> int:
    """The check bits of `_FILLED` bits."""
    rest, generator = data << CHECK, _generator()
    for at in range(_LENGTH - 1, CHECK - 1, -1):
        if rest >> at & 1:
            rest ^= generator << (at - CHECK)
    return rest


def encode(data: int) -> list[int]:
    """The `SIZE` bits of a payload of `DATA` bits."""
    filled = data << (_FILLED - DATA)
    word = (((data << CHECK) | _check(filled)) << 4) | SCHEMA
    return [word >> at & 1 for at in range(SIZE - 1, -1, -1)]


def decode(bits: list[int]) -> int | None:
    """The payload in `SIZE` bits with at most `ERRORS` wrong ones before the last four; None if there is none of this schema."""
    word = int("".join(map(str, bits)), 2)
    if word & 15 != SCHEMA:
        return None
    data, check = word >> (4 + CHECK), word >> 4 & ((1 << CHECK) - 1)
    received = (data << (_FILLED - DATA) << CHECK) | check
    syndromes = [_syndrome(received, power) for power in range(1, 2 * ERRORS + 1)]
    locator = _locator(syndromes)
    wrong = [at for at in range(_LENGTH) if _value(locator, -at % _ORDER) == 0] if any(syndromes) else []
    if len(wrong) != len(locator) - 1:
        return None
    for at in wrong:
        received ^= 1 << at
    filled = received >> CHECK
    return filled >> (_FILLED - DATA) if filled % (1 << (_FILLED - DATA)) == 0 and _check(filled) == received & ((1 << CHECK) - 1) else None


def _syndrome(received: int, power: int) -> int:
    """The word as a polynomial at α^power."""
    powers, total = _tables()[0], 0
    for at in range(_LENGTH):
        if received >> at & 1:
            total ^= powers[at * power % _ORDER]
    return total


def _value(polynomial: list[int], exponent: int) -> int:
    """`polynomial`, lowest coefficient first, at α^exponent."""
    powers, total = _tables()[0], 0
    for at, coefficient in enumerate(polynomial):
        total ^= _times(coefficient, powers[at * exponent % _ORDER])
    return total


def _locator(syndromes: list[int]) -> list[int]:
    """The error locator, lowest coefficient first (Berlekamp and Massey)."""
    powers, logarithms = _tables()
    current, previous, length, gap, last = [1], [1], 0, 1, 1
    for number in range(len(syndromes)):
        wrong = syndromes[number]
        for at in range(1, min(length, len(current) - 1) + 1):
            wrong ^= _times(current[at], syndromes[number - at])
        if not wrong:
            gap += 1
            continue
        factor = powers[(logarithms[wrong] - logarithms[last]) % _ORDER]
        moved = [0] * gap + [_times(factor, one) for one in previous]
        size = max(len(current), len(moved))
        updated = [a ^ b for a, b in zip(current + [0] * (size - len(current)), moved + [0] * (size - len(moved)), strict=True)]
        if 2 * length <= number:
            length, previous, last, gap = number + 1 - length, current, wrong, 1
        else:
            gap += 1
        current = updated
    while len(current) > 1 and not current[-1]:
        current.pop()
    return current
