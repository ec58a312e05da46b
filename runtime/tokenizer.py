"""CLIP's byte-pair tokenizer: text to token ids, equal to transformers' CLIPTokenizer but for one thing.

User text never becomes a control token: `<|endoftext|>` in a prompt is the twelve characters that it looks like, where
transformers would end the sentence. Built by HF `tokenizers` from vocab.json and merges.txt, or from tokenizer.json,
of which only the vocabulary and the merges are used: the rules are CLIP's, whatever the file says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from ..models import manifest
from ..models.errors import BundleError

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_FILE = 64 << 20
"""A vocabulary file is at most this many bytes; CLIP's have 1 to 4 MB."""

T = TypeVar("T")

_END_OF_WORD = "</w>"
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens(NamedTuple):
    """A text in tokens."""

    groups: list[tuple[int, ...]]
    """Token ids: one a group, or the several that a textual-inversion word stands for, which must not be parted."""
    unknown: int
    """How many symbols the vocabulary has no token for; they are left out."""


@dataclass(frozen=True)
class Tokenizer:
    """A CLIP tokenizer, opened. Threads may share it."""

    bpe: tokenizers.Tokenizer
    length: int
    """Tokens in one chunk, start and end included."""
    start: int
    end: int
    pad: int
    comma: int | None
    """Id of a comma that ends a word; a chunk is best parted behind it."""
    words: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Textual-inversion words, in lower case, and the ids of their rows in the token embedding (`inversion.place`)."""

    def encode(self, text: str) -> Tokens:
        """`text`, without start, end or padding, and however long."""
        groups: list[tuple[int, ...]] = []
        unknown = 0
        for piece in self._pieces(text):
            if isinstance(piece, tuple):
                groups.append(piece)
                continue
            ids = self.bpe.encode(piece, add_special_tokens=False).ids
            known = [(token,) for token in ids if token not in {self.start, self.end}]
            unknown += len(ids) - len(known)
            groups += known
        return Tokens(groups, unknown)

    def chunk(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """`length` ids: start, at most length − 2 `tokens`, end, padding."""
        ids = (self.start, *tokens, self.end)
        return ids + (self.pad,) * (self.length - len(ids))

    def _pieces(self, text: str) -> Iterator[str | tuple[int, ...]]:
        """`text` with the ids of textual-inversion words in their places; the longest word wins."""
        words = sorted(self.words, key=len, reverse=True)
        begun = 0
        if words:
            pattern = re.compile(rf"(?<!\w)(?:{'|'.join(f'({re.escape(word)})' for word in words)})(?!\w)", re.IGNORECASE)
            for match in pattern.finditer(text):
                yield text[begun : match.start()]
                yield self.words[words[(match.lastindex or 1) - 1]]
                begun = match.end()
        yield text[begun:]


def open_tokenizer(folder: Path, description: manifest.Tokenizer) -> Tokenizer:
    """The tokenizer in `folder`, with the chunk length and padding of `description`.

    Raises:
        BundleError: a file is missing or is no CLIP tokenizer.
    """
    model = _read_model(folder)
    bpe = tokenizers.Tokenizer(model)
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    start, end = bpe.token_to_id(START), bpe.token_to_id(END)
    if start is None or end is None:
        raise BundleError(f"{folder}: a CLIP vocabulary has {START} and {END}; this one has not: export the model again")
    if description.length < 3:
        raise BundleError(f"{folder}: chunks of {description.length} tokens: expected at least 3 (start, one token, end)")
    return Tokenizer(bpe, description.length, start, end, description.pad, bpe.token_to_id("," + _END_OF_WORD))


class _Model(msgspec.Struct):
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    type: str = "BPE"
    end_of_word_suffix: str | None = None


class _Added(msgspec.Struct):
    id: int
    content: str


class _TokenizerFile(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []


def _read_model(folder: Path) -> models.BPE:
    vocabulary, merges, single = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"
    # In place of a symbol that the vocabulary lacks comes the end token, which `encode` counts and leaves out.
    options: dict[str, Any] = {"unk_token": END, "continuing_subword_prefix": "", "end_of_word_suffix": _END_OF_WORD}
    if vocabulary.exists() and merges.exists():
        for path in (vocabulary, merges):
            _check(path)
        options |= {"vocab": str(vocabulary), "merges": str(merges)}
        build: Callable[..., models.BPE] = cast("Any", models.BPE).from_file
    else:
        content = _decode(single, _TokenizerFile)
        if content.model.type != "BPE" or content.model.end_of_word_suffix != _END_OF_WORD:
            raise BundleError(f"{single}: expected CLIP's BPE with {_END_OF_WORD} at the end of a word, got {content.model.type}")
        specials = {added.content: added.id for added in content.added_tokens if added.content in {START, END}}
        options |= {"vocab": content.model.vocab | specials, "merges": [_pair(merge, single) for merge in content.model.merges]}
        build = models.BPE
    try:
        return build(**options)
    except Exception as error:  # `tokenizers` raises bare Exception, and OverflowError for a negative id
        raise BundleError(f"{folder}: not a CLIP tokenizer ({error}): expected vocab.json and merges.txt, or tokenizer.json") from error


def _pair(merge: str | tuple[str, str], path: Path) -> tuple[str, str]:
    left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
    if not left or not right:
        raise BundleError(f"{path}: a merge is two symbols, got {merge!r}")
    return left, right


def _decode(path: Path, kind: type[T]) -> T:
    _check(path)
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}: expected the file that transformers writes") from error


def _check(path: Path) -> None:
    if not path.is_file():
        raise BundleError(f"{path}: no such file: expected vocab.json and merges.txt, or tokenizer.json")
    if path.stat().st_size > MAX_FILE:
        raise BundleError(f"{path}: {path.stat().st_size:,} bytes: expected at most {MAX_FILE:,}")
