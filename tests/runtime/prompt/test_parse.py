"""Prompts: parsing, and the text at each step."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusette.models.errors import RequestError
from diffusette.runtime.prompt import parse
from diffusette.runtime.prompt.parse import Fragment, Lora

LETTERS = list("ab cB,.019-+\n\t\x00éßİ日🦊ا\u200f\u0301")
WORDS = st.text(st.sampled_from(LETTERS), max_size=30)
GRAMMAR = st.text(st.sampled_from([*"()[]\\:|<>", *LETTERS]), max_size=50)
ANYTHING = st.lists(st.sampled_from([*"()[]\\:|<>", *LETTERS, "AND", " BREAK ", "<lora:", "\ud800", ":1.3)", ":3]"]), max_size=40).map(
    "".join
)


def said(text: str, steps: int = 10) -> list[tuple[int, str]]:
    """The text at each step where it changes, as the web UI's documentation writes it: (last step, text)."""
    (part,) = parse.parse(text).parts
    texts = ["".join(piece.text for section in parse.at_step(part.nodes, step, steps) for piece in section) for step in range(steps)]
    return [(step + 1, text) for step, text in enumerate(texts) if step == steps - 1 or texts[step + 1] != text]


def weighed(text: str) -> list[list[tuple[str, float]]]:
    """Sections of (text, weight) of a text that does not change."""
    (part,) = parse.parse(text).parts
    return [[(piece.text, round(piece.weight, 6)) for piece in section] for section in parse.at_step(part.nodes, 0, 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("[(a:2):3]", [(3, ""), (10, "a")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b:0.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b::0.3] c", [(3, "a b c"), (10, "a  c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:1]", [(1, "a"), (10, "b")]),
        ("[a:b:-1]", [(10, "b")]),
        ("[a:b:99]", [(10, "a")]),
    ],
)
def test_scheduled_words_change_where_the_web_ui_changes_them(text, expected):
    assert said(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a|(b:1.1)]", ["a", "b"] * 5),
        ("[fe|]male", ["female", "male"] * 5),
        ("[fe|||]male", ["female", "male", "male", "male"] * 2 + ["female", "male"]),
        ("[a|b|[c|d]]", ["a", "b", "c", "a", "b", "d", "a", "b", "c", "a"]),
        ("[a|b:0.5]", [""] * 5 + ["a|b"] * 5),
    ],
)
def test_alternating_words_take_turns_step_by_step(text, expected):
    (part,) = parse.parse(text).parts
    texts = ["".join(piece.text for section in parse.at_step(part.nodes, step, 10) for piece in section) for step in range(10)]
    assert texts == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [[("normal text", 1.0)]]),
        ("an (important) word", [[("an ", 1.0), ("important", 1.1), (" word", 1.0)]]),
        ("[less]", [[("less", round(1 / 1.1, 6))]]),
        ("((x))", [[("x", 1.21)]]),
        ("(a (b:2) c:0.5)", [[("a ", 0.5), ("b", 1.0), (" c", 0.5)]]),
        ("(x: 1.3 )", [[("x", 1.3)]]),
        ("(x:-0.5)", [[("x", -0.5)]]),
        ("(x:+.5)", [[("x", 0.5)]]),
        ("(x:y)", [[("x:y", 1.1)]]),
        ("(x:1.2.3)", [[("x:1.2.3", 1.1)]]),
        ("(:1.3)", [[]]),
        (r"\(literal\] \\ \| \:", [[("(literal] \\ | :", 1.0)]]),
        (r"(smile \(\:\):1.2)", [[("smile (:)", 1.2)]]),
        (r"\o/ and C:\dir", [[(r"\o/ and C:\dir", 1.0)]]),
        ("(unbalanced", [[("(unbalanced", 1.0)]]),
        ("unbalanced]:1.2)", [[("unbalanced]:1.2)", 1.0)]]),
        ("([x)]", [[("[x", 1.1), ("]", 1.0)]]),
        ("16:9 and a|b", [[("16:9 and a|b", 1.0)]]),
        ("(a)(b)", [[("ab", 1.1)]]),
        ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
        ("(a BREAK b:1.5)", [[("a", 1.5)], [("b", 1.5)]]),
        ("BREAKFAST", [[("BREAKFAST", 1.0)]]),
        ("BREAK", [[], []]),
        ("a (house:1.0) here", [[("a house here", 1.0)]]),
        ("", [[]]),
    ],
)
def test_brackets_weight_their_content(text, expected):
    assert weighed(text) == expected


def test_the_web_uis_own_example_weighs_the_same():
    text = "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))."
    expected = [
        ("a (", 1.0),
        ("house", 1.43),
        (" ", 1.0),
        ("on", 0.909091),
        (" a ", 1.0),
        ("hill", 0.5),
        (", sun, ", 1.0),
        ("sky", 1.331),
        (".", 1.0),
    ]
    assert weighed(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat AND a dog", [(1.0, "a cat "), (1.0, " a dog")]),
        ("a cat :1.2 AND a dog:-0.5", [(1.2, "a cat "), (-0.5, " a dog")]),
        ("a (cat AND dog) AND b", [(1.0, "a cat AND dog "), (1.0, " b")]),
        ("SAND AND ANDY", [(1.0, "SAND "), (1.0, " ANDY")]),
        ("one prompt :1.2", [(1.0, "one prompt :1.2")]),
        ("(open AND shut", [(1.0, "(open "), (1.0, " shut")]),
    ],
)
def test_and_joins_prompts_and_weights_them(text, expected):
    parts = parse.parse(text).parts
    found = [(part.weight, "".join(piece.text for section in parse.at_step(part.nodes, 0, 1) for piece in section)) for part in parts]
    assert found == expected


def test_and_is_a_word_in_a_negative_prompt():
    (part,) = parse.parse("this AND that", joined=False).parts
    assert parse.at_step(part.nodes, 0, 1) == ((Fragment("this AND that", 1.0),),)


def test_loras_are_removed_from_the_text():
    parsed = parse.parse("a <lora:water colour:0.8>cat <lora:x><lora:sub/y.z:0.5:-1>")
    assert parsed.loras == (Lora("water colour", 0.8, 0.8), Lora("x", 1.0, 1.0), Lora("sub/y.z", -1.0, 0.5))
    assert parse.at_step(parsed.parts[0].nodes, 0, 1) == ((Fragment("a cat ", 1.0),),)


@pytest.mark.parametrize(
    ("tag", "weights", "ignored"),
    [
        ("<lora:a:1:lbw=OUTALL>", (1.0, 1.0), ("lbw=OUTALL",)),
        ("<lora:a:te=0.5:unet=0.8>", (0.8, 0.5), ()),
        ("<lora:a:0.7:unet=0.8>", (0.8, 0.7), ()),
        ("<lora:a:1:0.5:4>", (0.5, 1.0), ("4",)),
        ("<lora:a:dyn=4>", (1.0, 1.0), ("dyn=4",)),
    ],
)
def test_fields_of_a_lora_that_the_web_ui_or_its_extensions_have_are_read_or_ignored(tag, weights, ignored):
    (found,) = parse.parse(tag).loras
    assert (found.unet_weight, found.text_weight) == weights
    assert found.ignored == ignored


@pytest.mark.parametrize("tag", ["<lora:>", "<lora::1>", "<lora:x:strong>", "<lora:x:te=strong>", "<lora:x:99999>"])
def test_a_malformed_lora_is_refused(tag):
    with pytest.raises(RequestError, match="lora"):
        parse.parse(f"a cat {tag}")


def test_other_text_in_angle_brackets_is_plain_text():
    assert weighed("<hypernet:x:1> a <3 b") == [[("<hypernet:x:1> a <3 b", 1.0)]]
    assert weighed("<lora:never closed") == [[("<lora:never closed", 1.0)]]


@given(ANYTHING)
@settings(max_examples=200, deadline=None)
def test_any_text_is_parsed_or_refused(text):
    try:
        parsed = parse.parse(text)
        for part in parsed.parts:
            for step in range(3):
                for section in parse.at_step(part.nodes, step, 3):
                    for piece in section:
                        assert abs(piece.weight) <= parse.MAX_WEIGHT
                        piece.text.encode()
    except RequestError:
        pass


@given(WORDS)
@settings(max_examples=100, deadline=None)
def test_text_without_grammar_is_unchanged(text):
    expected = ((Fragment(text, 1.0),),) if text else ((),)
    assert parse.at_step(parse.parse(text).parts[0].nodes, 0, 1) == expected


@given(GRAMMAR)
@settings(max_examples=100, deadline=None)
def test_escaped_text_comes_back_unchanged(text):
    parsed = parse.parse(parse.escape(text), joined=False)
    sections = parse.at_step(parsed.parts[0].nodes, 0, 1)
    assert sections == (((Fragment(text, 1.0),),) if text else ((),))


@given(st.lists(st.tuples(st.sampled_from(["(", "["]), WORDS), max_size=5))
@settings(max_examples=50, deadline=None)
def test_weights_of_nested_brackets_multiply(layers):
    text = "core"
    weight = 1.0
    for bracket, words in layers:
        text = f"{words}({text})" if bracket == "(" else f"{words}[{text}]"
        weight *= 1.1 if bracket == "(" else 1 / 1.1
    pieces = [piece for section in parse.at_step(parse.parse(text, joined=False).parts[0].nodes, 0, 1) for piece in section]
    assert any(piece.text.endswith("core") and piece.weight == pytest.approx(weight) for piece in pieces)


@given(ANYTHING)
@settings(max_examples=50, deadline=None)
def test_cleaning_is_idempotent(text):
    once, _ = parse.clean(text)
    assert parse.clean(once) == (once, ())


def test_a_prompt_of_ten_megabytes_is_cut_and_a_note_reports_it():
    begin = time.thread_time()
    parsed = parse.parse("word, " * 1_750_000)
    assert time.thread_time() - begin < 2
    assert "20,000 of 10,500,000 characters" in parsed.notes[0]
    assert len(parse.at_step(parsed.parts[0].nodes, 0, 1)[0][0].text) == parse.MAX_CHARACTERS


def test_lone_surrogates_are_replaced_and_a_note_reports_it():
    parsed = parse.parse("a \ud83d cat\udc00 \x00")
    assert parse.at_step(parsed.parts[0].nodes, 0, 1)[0][0].text == "a \ufffd cat\ufffd \x00"
    assert "2 broken characters" in parsed.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "(" * 20_000,
        ")" * 20_000,
        "(" * 9_999 + "x",
        "[(" * 9_999,
        "([" * 5_000 + ")" * 9_000,
        " " * 20_000,
        ":" * 20_000,
        "|" * 20_000,
        "\\" * 20_000,
        "[a|" * 6_000,
        "<lora:" * 3_300,
        "a" * 20_000,
        "BREAK " * 3_300,
        "1" * 20_000,
        "()" * 10_000,
        "[a:b:1]" * 2_800,
    ],
    ids=lambda text: f"{text[:6]}…",
)
def test_pathological_texts_take_bounded_time(text):
    begin = time.thread_time()
    with suppress(RequestError):
        (part,) = parse.parse(text).parts
        parse.at_step(part.nodes, 0, 20)
    assert time.thread_time() - begin < 2


@pytest.mark.parametrize("text", ["(" * 9_999 + "x" + ")" * 9_999, "[" * 5_000 + "]" * 5_000, "(" * 101 + "x" + ")" * 101])
def test_brackets_beyond_the_limit_are_refused(text):
    with pytest.raises(RequestError, match="deeper than 100"):
        parse.parse(text)


def test_weights_beyond_the_limit_are_refused():
    (part,) = parse.parse("((x:9999):9999)").parts
    with pytest.raises(RequestError, match="weight"):
        parse.at_step(part.nodes, 0, 1)
    with pytest.raises(RequestError, match="AND with weight"):
        parse.parse("a :99999999 AND b")


def test_more_parts_than_the_limit_are_refused():
    with pytest.raises(RequestError, match="at most 16"):
        parse.parse(" AND ".join("abcdefghijklmnopq"))


def test_changes_tells_whether_the_text_differs_between_steps():
    assert not any(parse.changes(part.nodes) for part in parse.parse("a (b [c] d:1.2) AND e").parts)
    assert all(parse.changes(part.nodes) for part in parse.parse("(x [a|b]) AND [c:3]").parts)
