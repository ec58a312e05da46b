"""Textual inversion: words that stand for learned vectors.

A graph's token embedding keeps its shape (ONNX Runtime takes no initializer of another), so that rows cannot be appended.
But a CLIP vocabulary has about 78 tokens that no text can become, since it is lower-cased UTF-8: the learned vectors take
their rows, and a word is encoded as those tokens. The seam: `place` gives the new matrix, which goes into the session in
place of the old one, and the words, which go into the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models.errors import RequestError
from .tokenizer import Tokenizer

Matrix = NDArray[Any]
"""(vocabulary, width), floating point."""


class Placed(NamedTuple):
    """A token embedding with learned rows, and the tokenizer that knows their words."""

    matrix: Matrix
    tokenizer: Tokenizer


def read_vectors(tensors: Mapping[str, NDArray[Any]], encoder: int, where: str = "embedding") -> NDArray[np.float32] | None:
    """The vectors (count, width) for text encoder number `encoder` (0, or SDXL's 1) out of the tensors of a file.

    Understands `emb_params` (the web UI's), `clip_l` and `clip_g` (SDXL's), and a single tensor under any name (diffusers').
    None if the file has nothing for this encoder.

    Raises:
        RequestError: none of these layouts, or a tensor that is not a matrix of finite numbers.
    """
    if tensors.keys() & {"clip_l", "clip_g"}:
        vectors = tensors.get(("clip_l", "clip_g")[encoder])
    elif "emb_params" in tensors:
        vectors = tensors["emb_params"]
    elif len(tensors) == 1:
        (vectors,) = tensors.values()
    else:
        raise RequestError(
            f"{where}: tensors {', '.join(sorted(tensors)[:5]) or 'none'}: expected emb_params, clip_l and clip_g, or one tensor"
        )
    if vectors is None:
        return None
    rows = np.atleast_2d(np.asarray(vectors, np.float32))
    if rows.ndim != 2 or rows.size == 0 or not np.isfinite(rows).all():
        raise RequestError(f"{where}: shape {vectors.shape}: expected (vectors, width) of finite numbers")
    return rows


def place(matrix: Matrix, embeddings: Mapping[str, NDArray[np.float32]], tokenizer: Tokenizer) -> Placed:
    """`matrix` with the vectors of `embeddings` (word → (count, width)) in rows that no text uses, and the tokenizer for it.

    `matrix` itself is not changed, and `tokenizer` must be the one without words that it came with.

    Raises:
        RequestError: vectors of another width, a word of more vectors than a chunk holds, or more vectors than there are free rows.
    """
    spare = list(spare_tokens(tokenizer))
    room = min(tokenizer.length - 2, len(spare))
    changed = matrix.copy()
    words: dict[str, tuple[int, ...]] = {}
    for word, vectors in embeddings.items():
        count, width = vectors.shape
        if not word.strip():
            raise RequestError("textual inversion: a word without letters: expected a name to write in the prompt")
        if width != matrix.shape[1]:
            raise RequestError(
                f"textual inversion {word!r}: vectors of {width} numbers: this text encoder has {matrix.shape[1]}; take one made for it"
            )
        if count > room:
            raise RequestError(f"textual inversion {word!r}: {count} vectors: there is room for {room} in a chunk; leave out this one")
        if count > len(spare):
            raise RequestError(
                f"textual inversion {word!r}: {count} vectors: only {len(spare)} rows are free; use fewer embeddings at once"
            )
        ids, spare = tuple(spare[:count]), spare[count:]
        changed[list(ids)] = vectors.astype(matrix.dtype)
        words[word.lower()] = ids
    return Placed(changed, replace(tokenizer, words=words))


def spare_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that no text is ever encoded to: capital letters (text is lower-cased), and bytes that UTF-8 does not have."""
    never = [*range(ord("A"), ord("Z") + 1), 0xC0, 0xC1, *range(0xF5, 0x100)]  # each a symbol of the same code point
    found = [tokenizer.bpe.token_to_id(chr(byte) + suffix) for byte in never for suffix in ("", "</w>")]
    return tuple(token for token in found if token is not None and token not in {tokenizer.start, tokenizer.end, tokenizer.pad})
