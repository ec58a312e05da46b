"""CLIP's tokenizer: the same tokens as transformers, and no control tokens from user text."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from diffusette.models import manifest
from diffusette.models.errors import BundleError
from diffusette.models.formats.clip_vocabulary import MAX_BYTES
from diffusette.runtime.prompt.tokenizer import END, START, Tokenizer, open_tokenizer
from tests.support import tiny_models
from tests.support.tokens import opened

NASTY = [
    "", " ", "\n", "a", "A red apple", "RED   apple\t\non a\r\ntable", "it's we're I'd they've you'll I'm can't 's ' ''s", "don’t",
    "x'S", "'Re", "1234567890", "3.14 1,000 16:9 50% #1", "½ ² ⅷ ๓ 一二三", "a,b,,c ,d, e", "!!! ... ?!", "—–-_",
    "(((x)))", "a/b\\c|d", "<|>", "<| endoftext |>", "\x00", "a\x00b", "\x01\x7f\x80\x9f", "\ufffd", "\ufffe\uffff", "\ufeffbom",
    "\u00ad", "a\u200bb", "a\u200db", "\u2028\u2029\u0085", "\u3000wide", "naïve café", "nai\u0308ve cafe\u0301", "\u0301\u0301",
    "a" + "\u0301" * 30, "Å Å Å", "ﬁ ﬀ", "İstanbul I ı i", "ẞ ß SS", "ΑΣ ας", "ǅ ǆ", "𝕳𝖊𝖑𝖑𝖔",
    "日本語のテキスト", "中文，。", "한국어", "한", "ภาษาไทย", "हिन्दी", "שלום עולם",
    "مرحبا بالعالم", "\u202emirror\u202c", "рисунок кота", "🦊", "👨‍👩‍👧‍👦 family",
    "🏳️‍🌈🇩🇪", "👍🏽", "☺︎ ☺️", "cat🐈cat", "a🦊,b", "\U0010ffff", "\U000e0001",
    "zalgo h̷̢͝e̵̛ ̶c̸", "http://example.org/a?b=c&d=[e]", "user@example.org", "snake_case camelCase", "C++ & C#", "'", '"',
    "``", "~^*+={}", "red-apple", "é" * 100, "ab" * 500,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    tiny_models.save_tokenizer(place)
    return place


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return opened(folder)


@pytest.fixture(scope="module")
def judge(folder) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [token for group in tokenizer.encode(text).groups for token in group]


def truth(judge: CLIPTokenizer, text: str) -> list[int]:
    """The tokens of transformers without start, end, and its replacement for unknown symbols (the end token)."""
    return [token for token in judge(text, add_special_tokens=False).input_ids if token != judge.eos_token_id]


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_tokens_are_those_of_transformers(tokenizer, judge, text):
    assert ids(tokenizer, text) == truth(judge, text)


@given(st.text(st.sampled_from([*"aApple red's,.1! \n", *"éßİ日🦊ا\u200f\u0301\u200d한½\x00"]), max_size=40))
@settings(max_examples=150, deadline=None)
def test_tokens_of_any_text_are_those_of_transformers(tokenizer, judge, text):
    assert ids(tokenizer, text) == truth(judge, text)


def test_a_chunk_is_padded_as_in_transformers(tokenizer, judge):
    for text in ("", "a red apple"):
        padded = judge(text, padding="max_length", max_length=12).input_ids
        assert list(tokenizer.chunk(tuple(ids(tokenizer, text)))) == padded


def test_tokenizer_json_alone_gives_the_same_tokens(tmp_path, tokenizer, judge):
    judge.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    other = opened(tmp_path)
    assert [ids(other, text) for text in NASTY] == [ids(tokenizer, text) for text in NASTY]
    assert (other.start, other.end, other.pad, other.comma) == (tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.comma)


@pytest.mark.parametrize("text", [END, START, f"a {END} b", f"{START}{END}" * 3, "<|ENDOFTEXT|>", f"x{END}y"])
def test_user_text_never_becomes_a_control_token(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokens.unknown == 0
    assert not {token for group in tokens.groups for token in group} & {tokenizer.start, tokenizer.end}
    spelled = "".join(tokenizer.bpe.id_to_token(token) for group in tokens.groups for token in group).replace("</w>", "")
    assert spelled == text.lower().replace(" ", "")


def test_symbols_missing_from_the_vocabulary_are_left_out_and_counted(tmp_path, folder):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    small = {token: number for token, number in vocabulary.items() if "Ł" not in token}  # the byte 0x9F, second of many emoji
    (tmp_path / "vocab.json").write_text(json.dumps(small))
    (tmp_path / "merges.txt").write_text((folder / "merges.txt").read_text())
    tokenizer = open_tokenizer(tmp_path, manifest.Tokenizer("tokenizer", 12, small[END]))
    plain = tokenizer.encode("a cat")
    odd = tokenizer.encode("a 🚀 cat 😂")
    assert (plain.unknown, odd.unknown) == (0, 2)
    assert {group[0] for group in odd.groups}.isdisjoint({tokenizer.start, tokenizer.end})


DAMAGE = {
    "not JSON": ("vocab.json", "<html>"),
    "empty": ("vocab.json", ""),
    "an array": ("vocab.json", "[1, 2]"),
    "negative id": ("vocab.json", json.dumps({START: 0, END: 1, "a": -1})),
    "no end token": ("vocab.json", json.dumps({START: 0, "a": 1})),
    "unknown merge": ("merges.txt", "#version: 0.2\nqzx vwk\n"),
    "not UTF-8": ("merges.txt", "\udcff\udcfe"),
}
"""The content that replaces a file of a valid tokenizer."""


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_tokenizer_is_refused_with_its_path(tmp_path, how):
    tiny_models.save_tokenizer(tmp_path)
    name, content = DAMAGE[how]
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(BundleError, match=str(tmp_path)):
        opened(tmp_path)


@pytest.mark.parametrize("content", [json.dumps({"model": {"type": "Unigram", "vocab": {}, "merges": []}}), "[" * 100_000, "{}", None])
def test_a_tokenizer_json_of_another_type_is_refused_with_its_path(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=str(tmp_path)):
        open_tokenizer(tmp_path, manifest.Tokenizer("tokenizer", 12, 0))


@pytest.mark.parametrize("what", ["FIFO", "large"])
def test_a_missing_or_oversized_file_is_refused_without_reading(tmp_path, what):
    tiny_models.save_tokenizer(tmp_path)
    merges = tmp_path / "merges.txt"
    if what == "FIFO":
        merges.unlink()
        os.mkfifo(merges)
    else:
        os.truncate(merges, MAX_BYTES + 1)
    with pytest.raises(BundleError, match=str(merges)):
        opened(tmp_path)


def test_a_chunk_too_short_for_any_token_is_refused(folder):
    with pytest.raises(BundleError, match="at least 3"):
        open_tokenizer(folder, manifest.Tokenizer("tokenizer", 2, 0))


def test_a_long_word_takes_bounded_time(tokenizer):
    begin = time.thread_time()
    for text in ("a" * 20_000, "🦊" * 20_000, "ab" * 10_000, "\u0301" * 20_000):
        tokenizer.encode(text)
    assert time.thread_time() - begin < 5
