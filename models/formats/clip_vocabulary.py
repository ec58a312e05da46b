"""The files of a CLIP tokenizer: `vocab.json` and `merges.txt`, or `tokenizer.json` alone, as transformers 4 and 5 write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..errors import BundleError
from .small_file import read_json, read_text

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
MAX_BYTES = 64 << 20
"""CLIP's files have 1 to 4 MB."""
MAX_TOKENS = 1 << 22


class Vocabulary(NamedTuple):
    """What a tokenizer's files say."""

    tokens: dict[str, int]
    """Token → id, `START` and `END` among them; in the order of the ids."""
    merges: list[tuple[str, str]]
    """The pairs of symbols that are merged, the first ones first."""
    added: dict[str, int]
    """Words that were learned later, such as `<cat-toy>`, with the rows that the text encoder has for them."""


class _Model(msgspec.Struct):
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    type: str = "BPE"
    end_of_word_suffix: str | None = None


class _Added(msgspec.Struct):
    id: int
    content: str


class _Whole(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []


def read(folder: Path) -> Vocabulary:
    """Read the tokenizer in `folder`.

    Raises:
        BundleError: no tokenizer, or not CLIP's byte-pair kind.
    """
    if os.path.lexists(folder / "vocab.json") and os.path.lexists(folder / "merges.txt"):
        tokens = read_json(folder / "vocab.json", dict[str, int], MAX_BYTES)
        lines = read_text(folder / "merges.txt", MAX_BYTES, "the merges of a CLIP tokenizer").split("\n")
        added_tokens = folder / "added_tokens.json"
        learned = read_json(added_tokens, dict[str, int]) if os.path.lexists(added_tokens) else {}
        pairs: list[str | tuple[str, str]] = [line for line in lines if line and not line.startswith("#version")]
    elif os.path.lexists(folder / "tokenizer.json"):
        whole = read_json(folder / "tokenizer.json", _Whole, MAX_BYTES)
        if whole.model.type != "BPE" or whole.model.end_of_word_suffix != END_OF_WORD:
            kind = f"tokenizer type {whole.model.type}"
            raise BundleError(f"{folder / 'tokenizer.json'}: {kind}, expected CLIP's BPE with {END_OF_WORD} at the end of a word")
        tokens, pairs = whole.model.vocab, whole.model.merges
        learned = {added.content: added.id for added in whole.added_tokens}
    else:
        raise BundleError(f"{folder}: no tokenizer, expected vocab.json and merges.txt, or tokenizer.json; download the model again")
    tokens = tokens | {word: number for word, number in learned.items() if word in {START, END}}
    if missing := {START, END} - tokens.keys():
        raise BundleError(f"{folder}: the vocabulary lacks {min(missing)}, expected a CLIP vocabulary; download the model again")
    if not all(0 <= number < MAX_TOKENS for number in (*tokens.values(), *learned.values())):
        raise BundleError(f"{folder}: a token has an id below 0 or above {MAX_TOKENS:,}, expected a CLIP vocabulary; download it again")
    added = {word: number for word, number in learned.items() if word.strip() and word not in tokens}
    return Vocabulary(dict(sorted(tokens.items(), key=lambda item: item[1])), [_pair(pair, folder) for pair in pairs], added)


def _pair(merge: str | tuple[str, str], folder: Path) -> tuple[str, str]:
    left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
    if not left or not right:
        raise BundleError(f"{folder}: merge {str(merge)[:80]!r}, expected two symbols; download the model again")
    return left, right
