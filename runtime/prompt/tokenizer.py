"""CLIP's byte-pair tokenizer: text to token ids. Equal to transformers' CLIPTokenizer with one exception.

User text never becomes a control token: `<|endoftext|>` in a prompt is ordinary text, where transformers would end the sequence.
Built with Hugging Face `tokenizers` from vocab.json and merges.txt, or from the vocabulary and merges in tokenizer.json. The splitting
rules are always CLIP's; those in the file are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from ...models import manifest
from ...models.errors import BundleError
from ...models.formats import clip_vocabulary
from ...models.formats.clip_vocabulary import END, END_OF_WORD, START, Vocabulary

_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens(NamedTuple):
    """A tokenized text."""

    groups: list[tuple[int, ...]]
    """Token ids: one per group, or all the ids of a textual-inversion word, which must stay in one chunk."""
    unknown: int
    """The number of symbols without a token in the vocabulary; they are left out."""


@dataclass(frozen=True)
class Tokenizer:
    """An open CLIP tokenizer. Threads may share it."""

    bpe: tokenizers.Tokenizer
    length: int
    """Tokens in one chunk, including start and end."""
    start: int
    end: int
    pad: int
    comma: int | None
    """Id of a comma that ends a word, where a chunk is best split; None if the vocabulary has none."""
    words: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Learned words in lower case and the ids of their rows in the token embedding: the model's own, and those that
    `textual_inversion.place` adds."""

    def encode(self, text: str) -> Tokens:
        """Tokenize `text` of any length, without start, end or padding."""
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
        """Return `length` ids: start, at most `length` - 2 `tokens`, end, padding."""
        ids = (self.start, *tokens, self.end)
        return ids + (self.pad,) * (self.length - len(ids))

    def _pieces(self, text: str) -> Iterator[str | tuple[int, ...]]:
        """Split `text` into plain text and the ids of learned words; the longest matching word wins."""
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
    """Open the tokenizer in `folder`, with the chunk length and padding of `description`.

    Raises:
        BundleError: a file is missing or is not a CLIP tokenizer.
    """
    vocabulary = clip_vocabulary.read(folder)
    bpe = tokenizers.Tokenizer(_bpe(vocabulary, folder))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    if description.length < 3:
        raise BundleError(f"{folder}: chunks of {description.length} tokens, expected at least 3 (start, one token, end)")
    tokens = vocabulary.tokens
    words = MappingProxyType({word.lower(): (token,) for word, token in vocabulary.added.items()})
    return Tokenizer(bpe, description.length, tokens[START], tokens[END], description.pad, tokens.get("," + END_OF_WORD), words)


def _bpe(vocabulary: Vocabulary, folder: Path) -> models.BPE:
    # Symbols that are not in the vocabulary become the end token, which `encode` counts and leaves out.
    options: dict[str, Any] = {"unk_token": END, "continuing_subword_prefix": "", "end_of_word_suffix": END_OF_WORD}
    try:
        return models.BPE(vocab=vocabulary.tokens, merges=vocabulary.merges, **options)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise BundleError(f"{folder}: not a CLIP tokenizer ({error}); download or export the model again") from error
