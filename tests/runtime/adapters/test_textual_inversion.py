"""Textual inversion: words for learned vectors, in rows that no text uses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from diffusette.models.errors import RequestError
from diffusette.runtime.adapters import textual_inversion
from diffusette.runtime.prompt.tokenizer import Tokenizer
from tests.support import tiny_models
from tests.support.tokens import opened

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_models.save_tokenizer(folder)
    return opened(folder)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(0)
    return tiny_models.text_encoder(tokenizer.bpe.get_vocab_size())


def matrix_of(encoder) -> np.ndarray:
    return encoder.get_input_embeddings().weight.detach().numpy()


def vectors(count: int, width: int = 32) -> np.ndarray:
    return rng.standard_normal((count, width), np.float32)


def groups(tokenizer: Tokenizer, text: str) -> list[tuple[int, ...]]:
    return tokenizer.encode(text).groups


def test_a_word_is_encoded_as_if_its_vectors_had_been_appended(tokenizer, encoder):
    learned = vectors(3)
    before = matrix_of(encoder).copy()
    placed = textual_inversion.place(before, {"GlowStyle": learned}, tokenizer)
    ids = placed.tokenizer.chunk(tuple(token for group in groups(placed.tokenizer, "a glowstyle apple") for token in group))
    size = len(before)
    appended = [
        size + placed.tokenizer.words["glowstyle"].index(token) if token in placed.tokenizer.words["glowstyle"] else token for token in ids
    ]
    with torch.no_grad():
        encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.from_numpy(placed.matrix)))
        found = encoder(torch.tensor([ids])).last_hidden_state
        encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.from_numpy(np.concatenate([before, learned]))))
        expected = encoder(torch.tensor([appended])).last_hidden_state
        encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.from_numpy(before)))
    np.testing.assert_array_equal(found, expected)


def test_rows_that_texts_use_stay_unchanged(tokenizer, encoder):
    before = matrix_of(encoder)
    kept = before.copy()
    placed = textual_inversion.place(before, {"a": vectors(4), "b": vectors(2)}, tokenizer)
    taken = [token for ids in placed.tokenizer.words.values() for token in ids]
    assert len(set(taken)) == 6
    assert set(np.flatnonzero((placed.matrix != before).any(axis=1))) == set(taken)
    assert placed.matrix.shape == before.shape
    np.testing.assert_array_equal(before, kept)


def test_no_text_is_encoded_to_a_spare_row(tokenizer):
    spare = set(textual_inversion.spare_tokens(tokenizer))
    assert len(spare) == 78
    assert spare.isdisjoint({tokenizer.start, tokenizer.end, tokenizer.pad})
    for first in range(0, 0x3000, 64):
        text = " ".join(map(chr, range(first, first + 64)))
        assert spare.isdisjoint(token for group in groups(tokenizer, text) for token in group), hex(first)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("glow", 1),
        ("GLOW", 1),
        ("(glow)", 1),
        ("glow,glow", 2),
        ("aglow glowing", 0),
        ("<cat-toy>", 1),
        ("a<cat-toy>b", 0),
        ("glow-worm", 1),
        ("glow two", 1),
    ],
)
def test_a_word_matches_only_as_a_whole_word(tokenizer, encoder, text, count):
    placed = textual_inversion.place(matrix_of(encoder), {"glow": vectors(2), "<cat-toy>": vectors(3), "glow-worm": vectors(4)}, tokenizer)
    long = [group for group in groups(placed.tokenizer, text) if len(group) > 1]
    assert len(long) == count
    if text == "glow-worm":
        assert len(long[0]) == 4


def test_letters_that_match_a_word_only_by_case_folding_raise_nothing(tokenizer):
    odd = dataclasses.replace(tokenizer, words={"sick": (1, 2), "ki": (3, 4)})
    for text in ("ſick", "SICK", "İ sıck \u212ai", "ſ"):
        groups(odd, text)
    assert groups(odd, "\u017fick") == [(1, 2)]


def test_every_file_layout_is_understood():
    one, two = vectors(2, 4), vectors(2, 6)
    np.testing.assert_array_equal(textual_inversion.read_vectors({"emb_params": one, "step": vectors(1)}, 0), one)
    np.testing.assert_array_equal(textual_inversion.read_vectors({"clip_l": one, "clip_g": two}, 0), one)
    np.testing.assert_array_equal(textual_inversion.read_vectors({"clip_l": one, "clip_g": two}, 1), two)
    np.testing.assert_array_equal(textual_inversion.read_vectors({"<cat-toy>": one[0].astype(np.float16)}, 0), one[:1].astype(np.float16))
    assert textual_inversion.read_vectors({"clip_g": two}, 0) is None


@pytest.mark.parametrize(
    "tensors",
    [{}, {"a": vectors(1), "b": vectors(1)}, {"emb_params": np.zeros((0, 4))}, {"x": np.full((1, 4), np.nan)}, {"x": np.zeros((1, 2, 3))}],
    ids=["none", "two", "empty", "NaN", "three axes"],
)
def test_another_layout_is_refused_with_the_name_of_the_file(tensors):
    with pytest.raises(RequestError, match=r"glow\.safetensors"):
        textual_inversion.read_vectors(tensors, 0, "glow.safetensors")


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ({"glow": vectors(1, 31)}, "its vectors have 31 numbers, expected 32"),
        ({"glow": vectors(11)}, "a chunk holds 10"),
        ({str(number): vectors(10) for number in range(8)}, "only 8 rows are free"),
        ({" ": vectors(1)}, "has no letters"),
    ],
    ids=["width", "chunk", "rows", "word"],
)
def test_vectors_that_do_not_fit_are_refused(tokenizer, encoder, embeddings, message):
    with pytest.raises(RequestError, match=message):
        textual_inversion.place(matrix_of(encoder), embeddings, tokenizer)


def test_rows_take_the_type_of_the_matrix(tokenizer, encoder):
    placed = textual_inversion.place(matrix_of(encoder).astype(np.float16), {"glow": vectors(2)}, tokenizer)
    assert placed.matrix.dtype == np.float16
