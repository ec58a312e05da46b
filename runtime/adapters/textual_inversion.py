"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): words for learned vectors.

The token embedding of a graph has a fixed shape (ONNX Runtime accepts only initializers of the same shape), so rows cannot be appended.
But CLIP's vocabulary has about 78 tokens that no text can produce, since text is lower-cased UTF-8. The learned vectors replace the rows of
those tokens, and a word is encoded as those tokens. `place` returns the new matrix for the session and the tokenizer with the words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...models.errors import RequestError
from ..prompt.tokenizer import Tokenizer

Matrix = NDArray[Any]
"""(vocabulary, width), floating point."""


class Placed(NamedTuple):
    """A token embedding with learned rows, and the tokenizer that knows their words."""

    matrix: Matrix
    tokenizer: Tokenizer


def word_of(tensors: Mapping[str, NDArray[Any]]) -> str | None:
    """Return the word that a file of diffusers names: the key of its only tensor; None for other layouts."""
    (first, *others) = tensors or ("",)
    return first if not others and first.strip() and first not in {"emb_params", "clip_l", "clip_g"} else None


def read_vectors(tensors: Mapping[str, NDArray[Any]], encoder: int, where: str = "embedding") -> NDArray[np.float32] | None:
    """Return the vectors (count, width) for text encoder number `encoder` (0, or 1 for SDXL) from the tensors of a file.

    Supported layouts are `emb_params` (the web UI), `clip_l` and `clip_g` (SDXL), and a single tensor of any name (diffusers). Returns None
    if the file has no vectors for this encoder.

    Raises:
        RequestError: another layout, or a tensor that is not a matrix of finite numbers.
    """
    if tensors.keys() & {"clip_l", "clip_g"}:
        vectors = tensors.get(("clip_l", "clip_g")[encoder])
    elif "emb_params" in tensors:
        vectors = tensors["emb_params"]
    elif len(tensors) == 1:
        (vectors,) = tensors.values()
    else:
        raise RequestError(
            f"{where}: tensors {', '.join(sorted(tensors)[:5]) or 'none'}; expected emb_params, clip_l and clip_g, or a single tensor"
        )
    if vectors is None:
        return None
    rows = np.atleast_2d(np.asarray(vectors, np.float32))
    if rows.ndim != 2 or rows.size == 0 or not np.isfinite(rows).all():
        raise RequestError(f"{where}: shape {vectors.shape}, expected (vectors, width) with finite numbers; use another file")
    return rows


def place(matrix: Matrix, embeddings: Mapping[str, NDArray[np.float32]], tokenizer: Tokenizer) -> Placed:
    """Put the vectors of `embeddings` (word → (count, width)) into rows of `matrix` that no text uses; return the result and its tokenizer.

    `matrix` itself is not changed. `tokenizer` must be the model's own.

    Raises:
        RequestError: vectors of another width, a word with more vectors than a chunk holds, or more vectors than free rows.
    """
    spare = list(spare_tokens(tokenizer))
    room = min(tokenizer.length - 2, len(spare))
    changed = matrix.copy()
    words = dict(tokenizer.words)
    for word, vectors in embeddings.items():
        count, width = vectors.shape
        if not word.strip():
            raise RequestError("textual inversion: the file name has no letters; rename it to the word that prompts use")
        if width != matrix.shape[1]:
            raise RequestError(
                f"textual inversion {word!r}: its vectors have {width} numbers, expected {matrix.shape[1]}; use an "
                f"embedding made for this text encoder"
            )
        if count > room:
            raise RequestError(f"textual inversion {word!r}: {count} vectors, but a chunk holds {room}; leave it out")
        if count > len(spare):
            raise RequestError(
                f"textual inversion {word!r}: {count} vectors, but only {len(spare)} rows are free; use fewer embeddings in one request"
            )
        ids, spare = tuple(spare[:count]), spare[count:]
        changed[list(ids)] = vectors.astype(matrix.dtype)
        words[word.lower()] = ids
    return Placed(changed, replace(tokenizer, words=words))


def spare_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that no text produces: capital letters (text is lower-cased) and bytes that never occur in UTF-8."""
    never = [*range(ord("A"), ord("Z") + 1), 0xC0, 0xC1, *range(0xF5, 0x100)]  # each a symbol of the same code point
    found = [tokenizer.bpe.token_to_id(chr(byte) + suffix) for byte in never for suffix in ("", "</w>")]
    return tuple(token for token in found if token is not None and token not in {tokenizer.start, tokenizer.end, tokenizer.pad})
