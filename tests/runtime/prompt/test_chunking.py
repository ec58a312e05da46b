"""Chunks: where a long prompt is split."""

from __future__ import annotations

import dataclasses

import pytest

from diffusette.models.errors import RequestError
from diffusette.runtime.prompt import chunking, parse
from diffusette.runtime.prompt.tokenizer import Tokenizer
from tests.support import tiny_models
from tests.support.tokens import opened

A, B = "a", "b"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """Chunks of 32 tokens, 30 of them text; padding that is not the end token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_models.save_tokenizer(folder, pad="!")
    return opened(folder)


@pytest.fixture(scope="module")
def wide(tokenizer) -> Tokenizer:
    return dataclasses.replace(tokenizer, length=32)


def cut(text: str, tokenizer: Tokenizer) -> list[str]:
    """The text of each chunk, in the letters of its tokens."""
    (part,) = parse.parse(text).parts
    found, _ = chunking.chunk(parse.at_step(part.nodes, 0, 1), tokenizer)
    for one in found:
        assert len(one.ids) == len(one.weights) == tokenizer.length
        assert one.ids[0] == tokenizer.start
        assert one.weights[0] == one.weights[-1] == 1.0
        end = one.ids.index(tokenizer.end)
        assert set(one.ids[end + 1 :]) <= {tokenizer.pad}
    words = [[tokenizer.bpe.id_to_token(token).replace("</w>", "") for token in one.ids[1 : one.ids.index(tokenizer.end)]] for one in found]
    return ["".join(letters) for letters in words]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [""]),
        ("a " * 30, ["a" * 30]),
        ("a " * 31, ["a" * 30, "a"]),
        ("a " * 61, ["a" * 30, "a" * 30, "a"]),
        ("a " * 25 + ", " + "b " * 4 + "a", ["a" * 25 + ",", "bbbba"]),
        ("a " * 25 + ", " + "b " * 4, ["a" * 25 + ",bbbb"]),
        ("a " * 10 + ", " + "b " * 19 + "a", ["a" * 10 + ",", "b" * 19 + "a"]),
        ("a " * 9 + ", " + "b " * 20 + "a", ["a" * 9 + "," + "b" * 20, "a"]),
        ("a " * 29 + ", b", ["a" * 29 + ",", "b"]),
        ("a " * 30 + ", b", ["a" * 30, ",b"]),
        ("a " * 25 + ", " + "b " * 4 + ", b", ["a" * 25 + ",bbbb", ",b"]),
        ("a BREAK b", ["a", "b"]),
        ("BREAK b", ["", "b"]),
        ("a BREAK", ["a"]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("BREAK", [""]),
        ("a " * 30 + "BREAK b", ["a" * 30, "b"]),
        ("a , BREAK " + "b " * 31, ["a,", "b" * 30, "b"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_text_is_split_where_the_web_ui_splits_it(wide, text, expected):
    assert cut(text, wide) == expected


def test_weights_stay_with_their_tokens(wide):
    (part,) = parse.parse("a (b:1.5) " + "a " * 23 + ", (b:0.5) a a a a a").parts
    first, second = chunking.chunk(parse.at_step(part.nodes, 0, 1), wide)[0]
    assert first.weights[1:4] == (1.0, 1.5, 1.0)
    assert second.weights[1:3] == (0.5, 1.0)


def test_chunks_beyond_the_limit_are_cut_and_a_note_reports_it(wide):
    (part,) = parse.parse("a " * 1_000).parts
    found, notes = chunking.chunk(parse.at_step(part.nodes, 0, 1), wide)
    assert len(found) == chunking.MAX_CHUNKS
    assert notes == ("cut to the first 32 of 34 chunks of 30 tokens",)


def test_the_vectors_of_a_word_stay_in_one_chunk(wide):
    tokenizer = dataclasses.replace(wide, words={"glow": (1, 2, 3)})
    (part,) = parse.parse("a " * 28 + "glow b").parts
    first, second = chunking.chunk(parse.at_step(part.nodes, 0, 1), tokenizer)[0]
    assert first.ids[29:31] == (tokenizer.end, tokenizer.pad)
    assert second.ids[1:4] == (1, 2, 3)


def test_a_word_with_more_vectors_than_a_chunk_holds_is_refused(wide):
    tokenizer = dataclasses.replace(wide, words={"glow": tuple(range(31))})
    with pytest.raises(RequestError, match="31 vectors"):
        chunking.chunk(((parse.Fragment("glow", 1.0),),), tokenizer)
