"""The texts of the site's page, in both languages."""

from __future__ import annotations

import json
import re

from tests.shipping.browser.conftest import SITE

TEXTS = {name: json.loads((SITE / f"{name}.json").read_text("utf-8")) for name in ("en", "de")}
CODE = "".join(path.read_text("utf-8") for path in SITE.iterdir() if path.suffix in {".js", ".html"})
MADE = r"error\.\w+|field\.\w+|opening\.\w+"
"""Keys that the code puts together."""


def test_both_languages_have_the_same_texts_with_the_same_values() -> None:
    assert TEXTS["en"].keys() == TEXTS["de"].keys()
    for key, text in TEXTS["en"].items():
        assert text.strip()
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", TEXTS["de"][key])), key


def test_every_text_in_use_is_there_and_every_text_there_is_used() -> None:
    quoted = set(re.findall(r'"([a-z]+(?:\.[\w.]+)?)"', CODE))
    used = set(re.findall(r'\bt\("([\w.]+)"', CODE)) | set(re.findall(r'data-t="([\w.]+)"', CODE))
    assert used - TEXTS["en"].keys() == set()
    assert {key for key in TEXTS["en"].keys() - quoted if not re.fullmatch(MADE, key)} == set()
