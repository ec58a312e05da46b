r"""The grammar of prompts: text in, structure out. No tokenizer, no arrays.

What people type into AUTOMATIC1111's web UI:

```
(x)  (x:1.3)             x counts 1.1 or 1.3 times as much; may be nested
[x]                      x counts 1.1 times less
[from:to:when]           another text from a step on; `when` is a step number, or with a point a fraction of all steps
[to:when]  [from::when]  a text that comes, or goes
[a|b|c]                  a text that changes with every step
a AND b :0.5             two prompts whose predictions are added up, each with a weight; outside brackets only
BREAK                    what follows begins a new chunk
<lora:name:weight>       a LoRA to use; no text of its own
\( \) \[ \] \\ \: \|        the character itself
```

A bracket without its partner is text, and so is everything else that does not fit. Two things are done otherwise than in
the web UI: an unbalanced bracket weighs nothing, and a number after a colon is AND's weight only where there is an AND
("16:9" stays what it is).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..models.errors import RequestError

MAX_CHARACTERS = 20_000
"""Longer prompts are cut, and `Prompt.notes` says so."""
MAX_DEPTH = 100
"""Deeper brackets are refused."""
MAX_WEIGHT = 10_000.0
"""A weight is at most this, and at least its negative."""
MAX_PARTS = 16
"""Prompts that AND may join: the U-Net runs once for each."""

_EMPHASIS = 1.1
_NUMBER = r"[+-]?(?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})"
_TOKEN = re.compile(r"\\[()\[\]\\:|]|[()\[\]:|]|(?:[^()\[\]\\:|]|\\(?![()\[\]\\:|]))+")
_TRAILING_NUMBER = re.compile(rf"\s*({_NUMBER})\s*")
_LORA = re.compile(r"<lora:([^<>]*)>")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_AND = re.compile(r"\bAND\b")
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
class Text:
    """Plain text, its escapes undone."""

    text: str


@dataclass(frozen=True)
class Emphasis:
    """What stands between round brackets, or between square ones that are nothing else."""

    nodes: tuple[Node, ...]
    factor: float


@dataclass(frozen=True)
class Scheduled:
    """[before:after:when]"""

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    when: float
    fraction: bool
    """`when` is a fraction of all steps; else a number of steps."""

    def nodes_at(self, step: int, steps: int) -> tuple[Node, ...]:
        """What holds at `step`, counted from 0, of `steps`."""
        return self.before if step < int(self.when * steps if self.fraction else self.when) else self.after


@dataclass(frozen=True)
class Alternate:
    """[a|b|c]"""

    options: tuple[tuple[Node, ...], ...]

    def nodes_at(self, step: int, steps: int) -> tuple[Node, ...]:  # noqa: ARG002  # the same signature as Scheduled's
        """What holds at `step`, counted from 0."""
        return self.options[step % len(self.options)]


@dataclass(frozen=True)
class Break:
    """BREAK"""


Node = Text | Emphasis | Scheduled | Alternate | Break


class Part(NamedTuple):
    """One of the prompts joined by AND."""

    weight: float
    nodes: tuple[Node, ...]


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
    tokens = _TOKEN.findall(_LORA.sub("", text))
    tree = _Tree(tokens, _partners(tokens))
    parts = tuple(_parts(tree)) if joined else (Part(1.0, tree.nodes(0, len(tokens))),)
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
    if not name or len(weights) > 2 or not all(re.fullmatch(_NUMBER, weight) for weight in weights):
        raise RequestError(f"prompt: <lora:{body[:80]}>: expected <lora:name:weight> with a number, such as <lora:watercolour:0.8>")
    text_weight = float(weights[0]) if weights else 1.0
    unet_weight = float(weights[-1]) if weights else 1.0
    if max(abs(text_weight), abs(unet_weight)) > MAX_WEIGHT:
        raise RequestError(f"prompt: <lora:{body[:80]}>: a weight beyond {MAX_WEIGHT:g}; about 0 to 1 is usual")
    return Lora(name, unet_weight, text_weight)


def _partners(tokens: Sequence[str]) -> dict[int, int]:
    """Index of the closing bracket for each opening one that has a partner; one pass.

    Raises:
        RequestError: brackets deeper than `MAX_DEPTH`.
    """
    opening = {")": "(", "]": "["}
    waiting: list[int] = []
    count = {"(": 0, "[": 0}
    partners: dict[int, int] = {}
    height: list[int] = []  # for each waiting bracket, how deep the pairs inside it go
    for index, token in enumerate(tokens):
        if token in count:
            waiting.append(index)
            height.append(0)
            count[token] += 1
        elif token in opening and count[opening[token]]:
            inside = 0
            while True:  # brackets opened since, and not closed, are text
                start = waiting.pop()
                inside = max(inside, height.pop())
                count[tokens[start]] -= 1
                if tokens[start] == opening[token]:
                    break
            if inside == MAX_DEPTH:
                raise RequestError(f"prompt: brackets nested deeper than {MAX_DEPTH}; write (text:1.5) in place of many brackets")
            partners[start] = index
            if height:
                height[-1] = max(height[-1], inside + 1)
    return partners


@dataclass(frozen=True)
class _Tree:
    """Tokens and their brackets, to be made into nodes from the outside in."""

    tokens: Sequence[str]
    partners: dict[int, int]

    def nodes(self, start: int, stop: int) -> tuple[Node, ...]:
        """The nodes of tokens[start:stop]."""
        found: list[Node] = []
        for index in self.outer(start, stop):
            token = self.tokens[index]
            if index in self.partners:
                close = self.partners[index]
                inside = self.round if self.tokens[index] == "(" else self.square
                found.append(inside(index + 1, close))
            elif len(token) == 2 and token[0] == "\\":
                found.append(Text(token[1]))
            else:
                found.extend(_words(token))
        return tuple(found)

    def outer(self, start: int, stop: int) -> Iterator[int]:
        """Indices of start … stop that are in no bracket; a balanced pair is met once, at its opening."""
        index = start
        while index < stop:
            yield index
            index = self.partners.get(index, index) + 1

    def split(self, start: int, stop: int, separator: str) -> list[tuple[int, int]]:
        """Ranges of start … stop between the `separator` tokens outside brackets."""
        cuts = [index for index in self.outer(start, stop) if self.tokens[index] == separator]
        return list(zip([start, *(cut + 1 for cut in cuts)], [*cuts, stop], strict=True))

    def number(self, start: int, stop: int) -> str | None:
        """The number that the tokens are, if they are one."""
        match = _TRAILING_NUMBER.fullmatch(self.tokens[start]) if stop - start == 1 else None
        return match[1] if match else None

    def round(self, start: int, stop: int) -> Node:
        *_, (last, _) = self.split(start, stop, ":")
        number = self.number(last, stop) if last > start else None
        if number is None:
            return Emphasis(self.nodes(start, stop), _EMPHASIS)
        return Emphasis(self.nodes(start, last - 1), float(number))

    def square(self, start: int, stop: int) -> Node:
        fields = self.split(start, stop, ":")
        when = self.number(*fields[-1])
        if when is not None and len(fields) in {2, 3}:
            before = self.nodes(*fields[0]) if len(fields) == 3 else ()
            return Scheduled(before, self.nodes(*fields[-2]), float(when), fraction="." in when)
        options = self.split(start, stop, "|")
        if len(options) > 1:
            return Alternate(tuple(self.nodes(*option) for option in options))
        return Emphasis(self.nodes(start, stop), 1 / _EMPHASIS)


def _words(text: str) -> Iterator[Node]:
    for index, words in enumerate(_BREAK.split(text)):
        if index:
            yield Break()
        if words:
            yield Text(words)


def _parts(tree: _Tree) -> Iterator[Part]:
    """The prompts that AND joins; "text :0.5" at the end of one is its weight."""
    tokens: list[str] = []
    ends: list[int] = []  # where each part ends among `tokens`
    shift: dict[int, int] = {}  # old index of a token → new
    outside = set(tree.outer(0, len(tree.tokens)))
    for index, token in enumerate(tree.tokens):
        pieces = _AND.split(token) if index in outside and index not in tree.partners else [token]
        for piece in pieces[:-1]:
            tokens.append(piece)
            ends.append(len(tokens))
        shift[index] = len(tokens)
        tokens.append(pieces[-1])
    if len(ends) >= MAX_PARTS:
        raise RequestError(f"prompt: {len(ends) + 1} parts joined by AND: expected at most {MAX_PARTS}, since the U-Net runs once for each")
    moved = _Tree(tokens, {shift[start]: shift[close] for start, close in tree.partners.items()})
    for start, stop in zip([0, *ends], [*ends, len(tokens)], strict=True):
        *_, (last, _) = moved.split(start, stop, ":")
        number = moved.number(last, stop) if ends and last > start else None
        weight = 1.0 if number is None else float(number)
        if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
            raise RequestError(f"prompt: AND with weight {weight:g}: expected at most {MAX_WEIGHT:g}")
        yield Part(weight, moved.nodes(start, stop if number is None else last - 1))
