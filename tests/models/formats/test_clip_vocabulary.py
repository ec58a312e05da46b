"""The files of a CLIP tokenizer, as transformers 4 and 5 write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from diffusette.models.errors import BundleError
from diffusette.models.formats import clip_vocabulary
from tests.support import tiny_models


@pytest.mark.parametrize("fast", [False, True], ids=["vocab.json", "tokenizer.json"])
def test_a_tokenizer_is_read_with_the_words_that_were_added(tmp_path: Path, *, fast: bool) -> None:
    size = tiny_models.save_tokenizer(tmp_path, fast=fast)
    plain = CLIPTokenizer.from_pretrained(tmp_path).get_vocab()
    if fast:
        judge = CLIPTokenizer.from_pretrained(tmp_path)
        judge.add_tokens("<cat-toy>")
        judge.save_pretrained(tmp_path)
    else:
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<cat-toy>": size}))
    found = clip_vocabulary.read(tmp_path)
    assert found.added == {"<cat-toy>": size}
    assert found.tokens == plain


@pytest.mark.parametrize("added", [{"<x>": -1}, {"<x>": 1 << 40}, {"<x>": "1"}, ["<x>"]])
def test_added_tokens_with_impossible_ids_are_refused(tmp_path: Path, added: object) -> None:
    tiny_models.save_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(BundleError, match=r"added_tokens\.json|a token has an id"):
        clip_vocabulary.read(tmp_path)
