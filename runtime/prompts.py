"""Prompts: text in, structure out, and what it says at each step. The grammar is `grammar`'s; no tokenizer, no arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..models.errors import RequestError
from .grammar import MAX_WEIGHT, NUMBER, Alternate, Break, Emphasis, Node, Part, Scheduled, Text, joined_parts, plain_nodes

MAX_CHARACTERS = 20_000
"""Longer prompts are cut, and `Prompt.notes` says so."""

_LORA = re.compile(r"<lora:([^<>]*)>")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Fragment(NamedTuple):
    """A piece of text and how much it counts."""

    text: str
    weight: float


Sections = tuple[tuple[Fragment, ...], ...]
"""What a prompt says at one step: sections parted by BREAK, at least one, each a run of fragments, perhaps none."""


class Lora(NamedTuple):
    """`<lora:name:weight>` or `<lora:name:text weight:unet weight>`."""

    name: str
    unet_weight: float
    text_weight: float


@dataclass(frozen=True)
class Prompt:
    """A prompt, understood."""

    parts: tuple[Part, ...]
    """At least one."""
    loras: tuple[Lora, ...]
    notes: tuple[str, ...]
    """What was cut or replaced, in sentences for the user."""


def clean(text: str) -> tuple[str, tuple[str, ...]]:
    """`text` as it can be drawn and stored, and what was changed: cut to `MAX_CHARACTERS`, lone surrogates replaced.

    Cleaning twice changes nothing more.
    """
    notes: list[str] = []
    if len(text) > MAX_CHARACTERS:
        notes.append(f"cut to its first {MAX_CHARACTERS:,} of {len(text):,} characters")
        text = text[:MAX_CHARACTERS]
    text, replaced = _SURROGATES.subn("\ufffd", text)
    if replaced:
        notes.append(f"{replaced:,} broken characters (lone surrogates) were replaced by U+FFFD")
    return text, tuple(notes)


def parse(text: str, *, joined: bool = True) -> Prompt:
    """The structure of `text`. With `joined` off, as for a negative prompt, AND is an ordinary word.

    Raises:
        RequestError: brackets deeper than `MAX_DEPTH`, more than `MAX_PARTS` parts, a weight that is no number or beyond `MAX_WEIGHT`.
    """
    text, notes = clean(text)
    loras = tuple(_lora(match[1]) for match in _LORA.finditer(text))
    said = _LORA.sub("", text)
    parts = joined_parts(said) if joined else (Part(1.0, plain_nodes(said)),)
    return Prompt(parts, loras, notes)


def at_step(nodes: Sequence[Node], step: int, steps: int) -> Sections:
    """What `nodes` say at `step`, counted from 0, of `steps`; neighbours of one weight are one fragment.

    Raises:
        RequestError: a weight, multiplied through its brackets, beyond `MAX_WEIGHT`.
    """
    sections: list[list[tuple[list[str], float]]] = [[]]
    for piece in _walk(nodes, 1.0, step, steps):
        section = sections[-1]
        if piece is None:
            sections.append([])
        elif section and section[-1][1] == piece.weight:
            section[-1][0].append(piece.text)
        else:
            section.append(([piece.text], piece.weight))
    return tuple(tuple(Fragment("".join(texts), weight) for texts, weight in section) for section in sections)


def changes(nodes: Sequence[Node]) -> bool:
    """Whether `nodes` may say different things at different steps."""
    return any(isinstance(node, (Scheduled, Alternate)) or (isinstance(node, Emphasis) and changes(node.nodes)) for node in nodes)


def escape(text: str) -> str:
    """`text` with its brackets, colons, bars and backslashes made literal; words that mean something (AND, BREAK) stay words."""
    return re.sub(r"([()\[\]\\:|])", r"\\\1", text)


def _walk(nodes: Sequence[Node], weight: float, step: int, steps: int) -> Iterator[Fragment | None]:
    """Weighted texts in their order; None for BREAK. As deep as `MAX_DEPTH`, which the parser keeps."""
    if not abs(weight) <= MAX_WEIGHT:
        raise RequestError(
            f"prompt: brackets that multiply up to a weight of {weight:g}: expected at most {MAX_WEIGHT:g}; use fewer or smaller ones"
        )
    for node in nodes:
        match node:
            case Text():
                yield Fragment(node.text, weight)
            case Break():
                yield None
            case Emphasis():
                yield from _walk(node.nodes, weight * node.factor, step, steps)
            case Scheduled() | Alternate():
                yield from _walk(node.nodes_at(step, steps), weight, step, steps)


def _lora(body: str) -> Lora:
    name, *weights = (field.strip() for field in body.split(":"))
    if not name or len(weights) > 2 or not all(re.fullmatch(NUMBER, weight) for weight in weights):
        raise RequestError(f"prompt: <lora:{body[:80]}>: expected <lora:name:weight> with a number, such as <lora:watercolour:0.8>")
    text_weight = float(weights[0]) if weights else 1.0
    unet_weight = float(weights[-1]) if weights else 1.0
    if max(abs(text_weight), abs(unet_weight)) > MAX_WEIGHT:
        raise RequestError(f"prompt: <lora:{body[:80]}>: a weight beyond {MAX_WEIGHT:g}; about 0 to 1 is usual")
    return Lora(name, unet_weight, text_weight)
