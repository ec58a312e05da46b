"""The page's texts, in both languages."""

from __future__ import annotations

import json
import re

from tests.server.page.browser import PAGE

TEXTS = {name: json.loads((PAGE / f"{name}.json").read_text(encoding="utf-8")) for name in ("en", "de")}


def used() -> set[str]:
    """Keys that appear whole in the page's code."""
    found: set[str] = set()
    for path in PAGE.iterdir():
        if path.suffix in {".js", ".html"}:
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r"""\bt\("([\w.]+)\"""", text)) | set(re.findall(r'data-t(?:-label)?="([\w.]+)"', text))
    return found


def test_both_languages_have_the_same_texts() -> None:
    assert TEXTS["en"].keys() == TEXTS["de"].keys()


def test_every_text_in_use_is_there() -> None:
    assert {key for key in used() if key not in TEXTS["en"] and f"{key}.one" not in TEXTS["en"]} == set()


def test_both_languages_fill_in_the_same_values() -> None:
    for key, text in TEXTS["en"].items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", TEXTS["de"][key])), key


def test_no_text_is_empty() -> None:
    assert [key for texts in TEXTS.values() for key, text in texts.items() if not text.strip()] == []
