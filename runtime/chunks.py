"""From what a prompt says to chunks of tokens, each as long as the text encoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..models.errors import RequestError
from .prompts import Sections
from .tokenizer import Tokenizer

MAX_CHUNKS = 32
"""A longer text is cut, and `Encoded.notes` says so."""
COMMA_REACH = 20
"""A full chunk is parted behind its last comma if that is at most this many tokens back."""

_Token = tuple[int, float]
"""A token and its weight."""


class Chunk(NamedTuple):
    """Token ids, and how much each counts; both `Tokenizer.length` long."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def chunk(sections: Sections, tokenizer: Tokenizer) -> tuple[list[Chunk], tuple[str, ...]]:
    """`sections` in chunks of `tokenizer.length` tokens, at least one and at most `MAX_CHUNKS`, and what was left out.

    A section begins a chunk. Where a chunk is full, what stands behind a comma at most `COMMA_REACH` tokens back goes to
    the next one.

    Raises:
        RequestError: a textual-inversion word has more vectors than a chunk has room for.
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
    notes = [f"cut to its first {MAX_CHUNKS} of {len(packs):,} chunks of {room} tokens"] if len(packs) > MAX_CHUNKS else []
    if unknown:
        notes.append(f"{unknown:,} symbols that the model's vocabulary lacks were left out")
    return [close(pack, tokenizer) for pack in packs[:MAX_CHUNKS]], tuple(notes)


def _pack(groups: Sequence[tuple[tuple[int, ...], float]], room: int, comma: int | None) -> list[list[_Token]]:
    """`groups` in as many packs of at most `room` tokens as it takes."""
    packs: list[list[_Token]] = []
    pack: list[_Token] = []
    behind = 0  # where the text behind the last comma begins; 0: there is none
    for group, weight in groups:
        if len(group) > room:
            raise RequestError(f"prompt: an embedding of {len(group)} vectors: a chunk of this model has room for {room}")
        if comma is not None and group == (comma,):
            behind = len(pack) + 1
        elif len(pack) == room and behind and room - behind < COMMA_REACH:
            packs.append(pack[:behind])
            pack, behind = pack[behind:], 0
        if len(pack) + len(group) > room:
            packs.append(pack)
            pack, behind = [], 0
        pack += [(token, weight) for token in group]
    return [*packs, pack] if pack else packs


def close(pack: Sequence[_Token], tokenizer: Tokenizer) -> Chunk:
    """At most length - 2 tokens and their weights, as a whole chunk; start, end and padding count 1."""
    weights = (1.0, *(weight for _, weight in pack))
    return Chunk(tokenizer.chunk(tuple(token for token, _ in pack)), weights + (1.0,) * (tokenizer.length - len(weights)))
