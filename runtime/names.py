"""Look up names regardless of spelling; errors suggest the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from ..models.errors import RequestError
from .request import shown

Entry = TypeVar("Entry")


def key_of(name: str) -> str:
    """Normalize a name: case, spaces, dashes and underscores are removed, and `++` becomes `pp`."""
    return "".join(character for character in name.casefold().replace("++", "pp") if character.isalnum())


def unknown(kind: str, name: str, names: Iterable[str], others: Iterable[str] = ()) -> RequestError:
    """Return the error for an unknown name; it suggests the nearest of `names` and `others`, and lists `names`."""
    names = list(names)
    return RequestError(f"{kind} {shown(name)} is not known{guess(name, (*names, *others))}: choose one of {', '.join(names)}")


def guess(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean …?)" with the nearest of `names`, or nothing if none is near."""
    known = {key_of(entry): entry for entry in names}
    near = difflib.get_close_matches(key_of(name[:100]), known, n=1, cutoff=0.6)
    return f" (did you mean {known[near[0]]}?)" if near else ""


def look_up(kind: str, name: str, by_key: Mapping[str, Entry], names: Iterable[str]) -> Entry:
    """Return the entry of `by_key` (keys from `key_of`) for `name`, regardless of spelling.

    Raises:
        RequestError: unknown name, or no text; the message suggests the nearest of `names` and lists them all.
    """
    if not isinstance(cast("object", name), str):
        raise RequestError(f"{kind}: {shown(name)} is of type {type(name).__name__}, expected one of {', '.join(names)}")
    key = key_of(name)
    if key not in by_key:
        raise unknown(kind, name, names)
    return by_key[key]
