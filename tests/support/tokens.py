"""Opening the tokenizers that `tiny_models` writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from diffusette.models import manifest
from diffusette.runtime.prompt.tokenizer import Tokenizer, open_tokenizer


def opened(folder: Path, length: int = 12) -> Tokenizer:
    """The tokenizer in `folder` with chunks of `length` tokens and the padding that its config names."""
    tokenizer = open_tokenizer(folder, manifest.Tokenizer("tokenizer", length, 0))
    pad = json.loads((folder / "tokenizer_config.json").read_text())["pad_token"]
    return dataclasses.replace(tokenizer, pad=tokenizer.bpe.token_to_id(pad))
