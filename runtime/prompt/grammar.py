r"""The grammar of prompts, as in AUTOMATIC1111's web UI: parse text into a tree. No tokenizer, no arrays.

```
(x)  (x:1.3)             weight x by 1.1 or 1.3; may be nested
[x]                      weight x by 1 / 1.1
[from:to:when]           switch from one text to another; `when` is a step number or, with a decimal point, a fraction of all steps
[to:when]  [from::when]  add a text, or remove one
[a|b|c]                  alternate between texts, one per step
a AND b :0.5             add the predictions of two prompts, each with a weight; outside brackets only
BREAK                    begin a new chunk
<lora:name:weight>       use a LoRA; adds no text
\( \) \[ \] \\ \: \|        the literal character
```

An unmatched bracket is plain text, and so is everything else that does not match the grammar. Two rules differ from the web UI: an
unmatched bracket has no weight, and a number after a colon is a weight of AND only if the prompt has an AND ("16:9" stays text).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...models.errors import RequestError

MAX_DEPTH = 100
"""Deeper nesting of brackets is an error."""
MAX_WEIGHT = 10_000.0
"""The largest absolute value of a weight."""
MAX_PARTS = 16
"""The most prompts that AND may join: the U-Net runs once for each."""

NUMBER = r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
"""Regular expression of a number: a weight, a step, a fraction."""

_EMPHASIS = 1.1
_TOKEN = re.compile(r"\\[()\[\]\\:|]|[()\[\]:|]|(?:[^()\[\]\\:|]|\\(?![()\[\]\\:|]))+")
_ONLY_A_NUMBER = re.compile(rf"\s*({NUMBER})\s*")
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"\bAND\b")


@dataclass(frozen=True)
class Text:
    """Plain text without escapes."""

    text: str


@dataclass(frozen=True)
class Emphasis:
    """(text) or (text:weight); [text] if the square brackets are not `Scheduled` or `Alternate`."""

    nodes: tuple[Node, ...]
    factor: float


@dataclass(frozen=True)
class Scheduled:
    """[before:after:when]"""

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    when: float
    fraction: bool
    """Whether `when` is a fraction of all steps rather than a number of steps."""

    def nodes_at(self, step: int, steps: int) -> tuple[Node, ...]:
        """Return the nodes for `step`, counted from 0, of `steps`."""
        return self.before if step < int(self.when * steps if self.fraction else self.when) else self.after


@dataclass(frozen=True)
class Alternate:
    """[a|b|c]"""

    options: tuple[tuple[Node, ...], ...]

    def nodes_at(self, step: int, steps: int) -> tuple[Node, ...]:  # noqa: ARG002  # same signature as Scheduled
        """Return the nodes for `step`, counted from 0."""
        return self.options[step % len(self.options)]


@dataclass(frozen=True)
class Break:
    """BREAK"""


Node = Text | Emphasis | Scheduled | Alternate | Break


class Part(NamedTuple):
    """One of the prompts joined by AND."""

    weight: float
    nodes: tuple[Node, ...]


def plain_nodes(text: str) -> tuple[Node, ...]:
    """Parse `text`, with AND as an ordinary word.

    Raises:
        RequestError: brackets deeper than `MAX_DEPTH`.
    """
    tree = _tree(_TOKEN.findall(text))
    return tree.nodes(0, len(tree.tokens))


def joined_parts(text: str) -> tuple[Part, ...]:
    """Split `text` at AND into one or more prompts; a trailing ":0.5" is the weight of a prompt.

    Raises:
        RequestError: brackets deeper than `MAX_DEPTH`, more than `MAX_PARTS` parts, or a weight beyond `MAX_WEIGHT`.
    """
    whole = _tree(_TOKEN.findall(text))
    outside = set(whole.outer(0, len(whole.tokens))) - whole.partners.keys()
    parts: list[list[str]] = [[]]
    for index, token in enumerate(whole.tokens):
        first, *more = _AND.split(token) if index in outside else [token]
        parts[-1] += [first]
        parts += [[piece] for piece in more]
    if len(parts) > MAX_PARTS:
        raise RequestError(
            f"prompt: {len(parts):,} parts joined by AND, expected at most {MAX_PARTS} (the U-Net runs once for each); use fewer"
        )
    return tuple(_part(_tree(tokens), weighted=len(parts) > 1) for tokens in parts)


def _part(tree: _Tree, *, weighted: bool) -> Part:
    stop = len(tree.tokens)
    *_, (last, _) = tree.split(0, stop, ":")
    number = tree.number(last, stop) if weighted and last else None
    if number is None:
        return Part(1.0, tree.nodes(0, stop))
    if abs(float(number)) > MAX_WEIGHT:
        raise RequestError(f"prompt: AND with weight {number}, expected at most {MAX_WEIGHT:g}; use a smaller weight")
    return Part(float(number), tree.nodes(0, last - 1))


def _tree(tokens: Sequence[str]) -> _Tree:
    return _Tree(tokens, _partners(tokens))


def _partners(tokens: Sequence[str]) -> dict[int, int]:
    """Map the index of each matched opening bracket to that of its closing bracket, in one pass.

    Raises:
        RequestError: brackets deeper than `MAX_DEPTH`.
    """
    opening = {")": "(", "]": "["}
    waiting: list[int] = []
    count = {"(": 0, "[": 0}
    partners: dict[int, int] = {}
    height: list[int] = []  # the nesting depth inside each waiting bracket
    for index, token in enumerate(tokens):
        if token in count:
            waiting.append(index)
            height.append(0)
            count[token] += 1
        elif token in opening and count[opening[token]]:
            inside = 0
            while True:  # brackets opened since then and never closed are text
                start = waiting.pop()
                inside = max(inside, height.pop())
                count[tokens[start]] -= 1
                if tokens[start] == opening[token]:
                    break
            if inside == MAX_DEPTH:
                raise RequestError(f"prompt: brackets nested deeper than {MAX_DEPTH}; write (text:1.5) instead of many brackets")
            partners[start] = index
            if height:
                height[-1] = max(height[-1], inside + 1)
    return partners


@dataclass(frozen=True)
class _Tree:
    """Tokens and their matched brackets; turned into nodes from the outside in."""

    tokens: Sequence[str]
    partners: dict[int, int]

    def nodes(self, start: int, stop: int) -> tuple[Node, ...]:
        """Return the nodes of tokens[start:stop]."""
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
        """Yield the indices from start to stop outside brackets; a matched pair is yielded once, at its opening bracket."""
        index = start
        while index < stop:
            yield index
            index = self.partners.get(index, index) + 1

    def split(self, start: int, stop: int, separator: str) -> list[tuple[int, int]]:
        """Split the range from start to stop at the `separator` tokens outside brackets."""
        cuts = [index for index in self.outer(start, stop) if self.tokens[index] == separator]
        return list(zip([start, *(cut + 1 for cut in cuts)], [*cuts, stop], strict=True))

    def number(self, start: int, stop: int) -> str | None:
        """Return the text of the number if the tokens are exactly one number."""
        match = _ONLY_A_NUMBER.fullmatch(self.tokens[start]) if stop - start == 1 else None
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
    """Split `text` at BREAK and remove the white space around it."""
    pieces = _BREAK.split(text)
    for index, piece in enumerate(pieces):
        if index:
            yield Break()
        words = piece.lstrip() if index else piece
        words = words.rstrip() if index < len(pieces) - 1 else words
        if words:
            yield Text(words)
