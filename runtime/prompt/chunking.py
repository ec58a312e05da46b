"""Split a parsed prompt into chunks of tokens, each as long as the text encoder accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...models.errors import RequestError
from .parse import Sections
from .tokenizer import Tokenizer

MAX_CHUNKS = 32
"""Longer text is cut, and `Encoded.notes` reports it."""
COMMA_REACH = 20
"""A full chunk is split after its last comma if that comma is at most this many tokens back."""

_Token = tuple[int, float]
"""A token and its weight."""


class Chunk(NamedTuple):
    """Token ids and their weights; both have `Tokenizer.length` entries."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def chunk(sections: Sections, tokenizer: Tokenizer) -> tuple[list[Chunk], tuple[str, ...]]:
    """Split `sections` into 1 to `MAX_CHUNKS` chunks of `tokenizer.length` tokens; also return notes about omitted text.

    Each section begins a new chunk. When a chunk is full, the text after its last comma moves to the next chunk, provided that the comma
    is at most `COMMA_REACH` tokens back.

    Raises:
        RequestError: a textual-inversion word has more vectors than fit into a chunk.
    """
    room = tokenizer.length - 2
    packs: list[list[_Token]] = []
    unknown = 0
    for index, section in enumerate(sections):
        groups: list[tuple[tuple[int, ...], float]] = []
        for text, weight in section:
            tokens = tokenizer.encode(text)
            unknown += tokens.unknown
            groups += [(group, weight) for group in tokens.groups]
        found = _pack(groups, room, tokenizer.comma)
        if not found and (index < len(sections) - 1 or not packs):
            packs.append([])
        packs += found
    notes = [f"cut to the first {MAX_CHUNKS} of {len(packs):,} chunks of {room} tokens"] if len(packs) > MAX_CHUNKS else []
    if unknown:
        notes.append(f"left out {unknown:,} symbols that are not in the model's vocabulary")
    return [close(pack, tokenizer) for pack in packs[:MAX_CHUNKS]], tuple(notes)


def _pack(groups: Sequence[tuple[tuple[int, ...], float]], room: int, comma: int | None) -> list[list[_Token]]:
    """Distribute `groups` over packs of at most `room` tokens."""
    packs: list[list[_Token]] = []
    pack: list[_Token] = []
    after_comma = 0  # where the text after the last comma begins; 0 if there is no comma
    for group, weight in groups:
        if len(group) > room:
            raise RequestError(
                f"prompt: an embedding has {len(group)} vectors, but a chunk of this model holds {room} tokens; leave it out"
            )
        if comma is not None and group == (comma,):
            after_comma = len(pack) + 1
        elif len(pack) == room and after_comma and room - after_comma < COMMA_REACH:
            packs.append(pack[:after_comma])
            pack, after_comma = pack[after_comma:], 0
        if len(pack) + len(group) > room:
            packs.append(pack)
            pack, after_comma = [], 0
        pack += [(token, weight) for token in group]
    return [*packs, pack] if pack else packs


def close(pack: Sequence[_Token], tokenizer: Tokenizer) -> Chunk:
    """Complete at most `length` - 2 weighted tokens to a chunk; start, end and padding tokens have weight 1."""
    weights = (1.0, *(weight for _, weight in pack))
    return Chunk(tokenizer.chunk(tuple(token for token, _ in pack)), weights + (1.0,) * (tokenizer.length - len(weights)))
