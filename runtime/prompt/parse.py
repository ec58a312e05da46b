"""Parse prompts, and return their text at each step. The grammar is in `grammar`; no tokenizer, no arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...models.errors import RequestError
from .grammar import MAX_WEIGHT, NUMBER, Alternate, Break, Emphasis, Node, Part, Scheduled, Text, joined_parts, plain_nodes

MAX_CHARACTERS = 20_000
"""Longer prompts are cut, and `Prompt.notes` reports it."""

_LORA = re.compile(r"<lora:([^<>]*)>")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Fragment(NamedTuple):
    """A piece of text and its weight."""

    text: str
    weight: float


Sections = tuple[tuple[Fragment, ...], ...]
"""The text of a prompt at one step: one or more sections separated by BREAK, each of zero or more fragments."""


class Lora(NamedTuple):
    """`<lora:name:weight>`, `<lora:name:text weight:unet weight>`, or with names: `<lora:name:te=0.5:unet=0.8>`."""

    name: str
    unet_weight: float
    text_weight: float
    ignored: tuple[str, ...] = ()
    """Further fields, such as `lbw=…`, which extensions of the web UI understand."""


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt."""

    parts: tuple[Part, ...]
    """The prompts joined by AND; at least one."""
    loras: tuple[Lora, ...]
    notes: tuple[str, ...]
    """Text that was cut or replaced, described for the user."""


def clean(text: str) -> tuple[str, tuple[str, ...]]:
    """Make `text` safe to encode and to store: cut it to `MAX_CHARACTERS` and replace lone surrogates. Also return notes on the changes.

    The function is idempotent.
    """
    notes: list[str] = []
    if len(text) > MAX_CHARACTERS:
        notes.append(f"cut to the first {MAX_CHARACTERS:,} of {len(text):,} characters")
        text = text[:MAX_CHARACTERS]
    text, replaced = _SURROGATES.subn("\ufffd", text)
    if replaced:
        notes.append(f"replaced {replaced:,} broken characters (lone surrogates) with U+FFFD")
    return text, tuple(notes)


def parse(text: str, *, joined: bool = True) -> Prompt:
    """Parse `text`. With `joined` off, as for a negative prompt, AND is an ordinary word.

    Raises:
        RequestError: brackets deeper than `MAX_DEPTH`, more than `MAX_PARTS` parts, or a weight beyond `MAX_WEIGHT` or not a number.
    """
    text, notes = clean(text)
    loras = tuple(_lora(match[1]) for match in _LORA.finditer(text))
    remaining = _LORA.sub("", text)
    parts = joined_parts(remaining) if joined else (Part(1.0, plain_nodes(remaining)),)
    return Prompt(parts, loras, notes)


def at_step(nodes: Sequence[Node], step: int, steps: int) -> Sections:
    """Return the text of `nodes` at `step`, counted from 0, of `steps`. Neighbours with equal weights become one fragment.

    Raises:
        RequestError: the weights of nested brackets multiply to more than `MAX_WEIGHT`.
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
    """Whether the text of `nodes` can differ between steps."""
    return any(isinstance(node, (Scheduled, Alternate)) or (isinstance(node, Emphasis) and changes(node.nodes)) for node in nodes)


def escape(text: str) -> str:
    """Escape the brackets, colons, bars and backslashes of `text`. AND and BREAK stay keywords."""
    return re.sub(r"([()\[\]\\:|])", r"\\\1", text)


def _walk(nodes: Sequence[Node], weight: float, step: int, steps: int) -> Iterator[Fragment | None]:
    """Yield weighted texts in order, and None for BREAK. The parser limits the recursion to `MAX_DEPTH`."""
    if not abs(weight) <= MAX_WEIGHT:
        raise RequestError(
            f"prompt: nested brackets multiply to a weight of {weight:g}, expected at most {MAX_WEIGHT:g}; use fewer or smaller weights"
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
    name, *fields = (field.strip() for field in body.split(":"))
    named = {key.strip(): value.strip() for key, sign, value in (field.partition("=") for field in fields) if sign}
    weights = [field for field in fields if "=" not in field]
    if named.keys() & {"te", "unet"}:
        usual = weights[0] if weights else "1"
        weights = [named.pop("te", usual), named.pop("unet", usual)]
    ignored = (*weights[2:], *(f"{key}={value}" for key, value in named.items()))
    weights = weights[:2]
    if not name or not all(re.fullmatch(NUMBER, weight) for weight in weights):
        raise RequestError(f"prompt: <lora:{body[:80]}>, expected <lora:name:weight> with a number, such as <lora:watercolour:0.8>")
    text_weight = float(weights[0]) if weights else 1.0
    unet_weight = float(weights[-1]) if weights else 1.0
    if max(abs(text_weight), abs(unet_weight)) > MAX_WEIGHT:
        raise RequestError(f"prompt: <lora:{body[:80]}>, expected a weight of at most {MAX_WEIGHT:g}; usual weights are 0 to 1")
    return Lora(name, unet_weight, text_weight, ignored)
