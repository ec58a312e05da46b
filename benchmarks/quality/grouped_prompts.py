"""Files of prompts in groups, one JSON object a line, for `diffusette bench --spread`.

```
{"prompt": "a doctor at work", "groups": {"job": "doctor"}}
{"prompt": "red apple, flat style, blue background", "groups": {"kind": "food"}, "expect": {"subject": "red-apple", "style": "flat"}}
```
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...models.errors import RequestError
from ...models.formats.small_file import read_text
from .prompt_fidelity import Labels, labels

MAX_BYTES = 16 << 20
MAX_PROMPTS = 100_000
MAX_GROUPS = 16
"""Groups of one prompt."""
MAX_NAME = 100
"""Characters of a group's name or value."""
_EXAMPLE = '{"prompt": "a doctor", "groups": {"job": "doctor"}}'


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Labels of the demo model's judge that an image should get; None where any will do."""

    subject: str | None = None
    style: str | None = None
    background: str | None = None


class GroupedPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the file."""

    prompt: str
    groups: dict[str, str]
    """Name → value, such as "kind" → "food"."""
    expect: Expected | None = None


def read(path: Path) -> tuple[GroupedPrompt, ...]:
    """The prompts of a file; empty lines are skipped.

    Raises:
        BundleError: the file cannot be read, is too large, or is not UTF-8.
        RequestError: a line has another form; the message has its number.
    """
    lines = read_text(path, MAX_BYTES, "prompts and groups, one JSON object a line").splitlines()
    known = labels()
    found = tuple(_prompt(f"{path}, line {number}", line, known) for number, line in enumerate(lines, 1) if line.strip())
    if not 1 <= len(found) <= MAX_PROMPTS:
        raise RequestError(f"{path}: {len(found):,} prompts, expected 1 to {MAX_PROMPTS:,}, each in a line such as {_EXAMPLE}")
    return found


def _prompt(place: str, line: str, known: Labels) -> GroupedPrompt:
    try:
        found = msgspec.json.decode(line.encode(), type=GroupedPrompt)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RequestError(f"{place}: {error}; expected an object such as {_EXAMPLE}") from error
    sizes = [len(text) for pair in found.groups.items() for text in pair]
    if not 1 <= len(found.groups) <= MAX_GROUPS or not all(1 <= size <= MAX_NAME for size in sizes):
        raise RequestError(f"{place}: groups: expected 1 to {MAX_GROUPS} names with values, each of 1 to {MAX_NAME} characters")
    for name in ("subject", "style", "background"):
        wanted = getattr(found.expect, name, None)
        if wanted is not None and wanted not in getattr(known, name):
            raise RequestError(f"{place}: expect: {name} {wanted!r} is no label of the judge: see models/demo/judge/labels.json")
    return found
