"""Tokenizer, prompt grammar and chunks of the page, under Node, against those of the runtime."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from diffusette.models.bundle import DEMO, read_manifest
from diffusette.runtime.prompt import parse
from diffusette.runtime.prompt.chunking import chunk
from diffusette.runtime.prompt.tokenizer import Tokenizer, open_tokenizer
from tests.shipping.browser.conftest import Node

DESCRIPTION = read_manifest(DEMO).tokenizers["tokenizer"]
FILES = {
    "vocabulary": json.loads((DEMO / "tokenizer" / "vocab.json").read_text("utf-8")),
    "merges": (DEMO / "tokenizer" / "merges.txt").read_text("utf-8"),
    "description": {"length": DESCRIPTION.length, "pad": DESCRIPTION.pad},
}
TEXTS = [
    "red apple, flat style, blue background",
    "",
    "  A   Cat's\tdog\n\n isn't we're they'd I'm it'll I've 's''s !'s",
    "12345 x2 4k ½ ² ٣ 三",
    "naïve café ÀÉÎ Straße ΣΊΣΥΦΟΣ İstanbul ǅ ﬁ",
    "e\u0301 a\u0308 \u1100\u1161\u11a8",
    "日本語 한국어 עברית العربية हिन्दी ไทย",
    "🦊🎨 👩‍👩‍👧 🏳️‍🌈 ☃️",
    "<|endoftext|> <|startoftext|> <cat-toy> </w> Ġ",
    "a\u00a0b\u0085c\u2003d\u3000e\ufefff\u180eg\u200bh\u2028i\x1cj",
    "…—“quotes” ''double'' \\ / | # $ % ^ & * ( ) [ ] { }",
    "a\x00b \x7f \ufffd \U0010ffff",
    "supercalifragilisticexpialidocious " * 5,
]
PROMPTS = [
    "a cat, a dog",
    "(red:1.3) apple, ((very)) [small] (tree:0.5)",
    "[cat:dog:0.5] and [a|b|c], [from::3] [to:2]",
    "fox AND (bear:1.2) :0.5 AND wolf:1.5",
    "one BREAK two BREAK  three, BREAKFAST UNBREAK",
    r"\(literal\) \[x\] \\ a\:b (unmatched [pair",
    "16:9 style, a:b, (x:y), (:), [], (), [::], [a:b:c:1]",
    "<lora:name:0.5> apple <lora:x>",
    "word, " * 40 + "end of a long prompt without commas for quite a while and so on and on",
    "",
    "BREAK",
    "AND",
]


def open_demo() -> Tokenizer:
    return open_tokenizer(Path(DEMO) / "tokenizer", DESCRIPTION)


def expected_tokens(tokenizer: Tokenizer, text: str) -> dict[str, object]:
    found = tokenizer.encode(text)
    return {"ids": [token for group in found.groups for token in group], "unknown": found.unknown}


def test_texts_of_many_scripts_become_the_same_tokens(node: Node) -> None:
    tokenizer = open_demo()
    found = node("tokens", texts=TEXTS, **FILES)
    assert [(text, one) for text, one in zip(TEXTS, found, strict=True)] == [(text, expected_tokens(tokenizer, text)) for text in TEXTS]


def test_random_texts_become_the_same_tokens(node: Node) -> None:
    texts: list[str] = []

    @settings(max_examples=300, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.text(st.one_of(st.sampled_from("aAbz's, .!1 \t"), st.characters(codec="utf-8", max_codepoint=0xFFFF)), max_size=40))
    def collect(text: str) -> None:
        texts.append(text)

    collect()
    tokenizer, found = open_demo(), node("tokens", texts=texts, **FILES)
    wrong = [(text, one) for text, one in zip(texts, found, strict=True) if one != expected_tokens(tokenizer, text)]
    assert wrong[:3] == []


def test_learned_words_become_their_tokens(node: Node, tmp_path: Path) -> None:
    added = {"<cat-toy>": 1495, "cat": 1496, "<Dog>": 1497}
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((DEMO / "tokenizer" / name).read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    texts = ["a <CAT-TOY> here", "cat catcat <dog>!", "x<cat-toy>y <Dog>1 _cat cat_ (cat)"]
    tokenizer = open_tokenizer(tmp_path, DESCRIPTION)
    found = node("tokens", texts=texts, added=added, **FILES)
    assert found == [expected_tokens(tokenizer, text) for text in texts]


def test_prompts_have_the_same_weights_parts_steps_and_chunks(node: Node) -> None:
    tokenizer, steps = open_demo(), 6
    for text, parts in zip(PROMPTS, node("prompts", prompts=PROMPTS, steps=steps, **FILES), strict=True):
        own = parse.parse(text).parts
        assert [part["weight"] for part in parts] == [part.weight for part in own], text
        for part, mine in zip(parts, own, strict=True):
            for step in range(steps):
                sections = parse.at_step(mine.nodes, step, steps)
                said = [[(one["text"], one["weight"]) for one in section] for section in part["versions"][step]]
                assert said == [[tuple(one) for one in section] for section in sections], text
                chunks = [(tuple(one["ids"]), tuple(one["weights"])) for one in part["chunks"][step]]
                assert chunks == [tuple(one) for one in chunk(sections, tokenizer)[0]], text
