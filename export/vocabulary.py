"""CLIP tokenizers into a bundle: always as `vocab.json` and `merges.txt`, whatever the source has."""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from ..models.errors import BundleError
from ..models.manifest import Tokenizer
from .source import read_json

_STANDARD, _WORDS = "bpe_simple_vocab_16e6.txt.gz", 49_408
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def convert(source: Path, destination: Path, positions: int) -> Tokenizer:
    """Writes the tokenizer of the folder `source` into `destination`; `positions` is what the text encoder can take.

    transformers 5 saves `tokenizer.json` only; older ones vocabulary and merges. The runtime reads the latter.

    Raises:
        BundleError: no tokenizer, or not CLIP's byte-pair kind, or its padding token is unknown.
    """
    vocabulary, merges = _read(source) if source.is_dir() else standard(source)
    settings = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").exists() else {}
    mapped = read_json(source / "special_tokens_map.json") if (source / "special_tokens_map.json").exists() else {}
    if not source.is_dir() and source.name == "tokenizer_2":
        settings = {"pad_token": "!"}
    special = {key: _text(settings.get(key) or mapped.get(key)) or usual for key, usual in SPECIAL.items()}
    for key, token in special.items():
        if token not in vocabulary:
            raise BundleError(f"{source}: {key} {token!r} is not in the vocabulary: expected CLIP's tokenizer")
    wanted = settings.get("model_max_length")
    length = min(int(wanted), positions) if isinstance(wanted, int | float) and wanted > 2 else positions
    destination.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    for name, value in (("vocab.json", vocabulary), ("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (destination / name).write_text(
            json.dumps(value, ensure_ascii=False, indent=None if name == "vocab.json" else 2), "utf-8", newline="\n"
        )
    (destination / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in merges), "utf-8", newline="\n")
    return Tokenizer(folder=destination.name, length=length, pad=vocabulary[special["pad_token"]])


def _read(source: Path) -> tuple[dict[str, int], list[str]]:
    """The vocabulary and the merges, each merge as two symbols with a space between."""
    if (source / "vocab.json").exists() and (source / "merges.txt").exists():
        vocabulary = read_json(source / "vocab.json")
        lines = (source / "merges.txt").read_text("utf-8").split("\n")
        return vocabulary, [line for line in lines if line and not line.startswith("#version")]
    if not (source / "tokenizer.json").exists():
        raise BundleError(f"{source}: expected vocab.json and merges.txt, or tokenizer.json: the tokenizer is missing")
    whole = read_json(source / "tokenizer.json")
    model = cast("dict[str, Any]", whole.get("model") or {})
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != "</w>" or not {"vocab", "merges"} <= model.keys():
        raise BundleError(f"{source / 'tokenizer.json'}: expected CLIP's byte-pair model with the end of words marked by '</w>'")
    vocabulary: dict[str, int] = {str(token): int(number) for token, number in model["vocab"].items()}
    for token in whole.get("added_tokens", []):
        vocabulary.setdefault(str(token["content"]), int(token["id"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return dict(sorted(vocabulary.items(), key=lambda item: item[1])), merges


def standard(missing: Path) -> tuple[dict[str, int], list[str]]:
    """The vocabulary and the merges that OpenAI trained and every Stable Diffusion uses, from the package open_clip or clip.

    Checkpoints in one file bring no tokenizer; `missing` is where one would be looked for first.

    Raises:
        BundleError: neither package is installed.
    """
    for package in ("open_clip", "clip"):
        spec = find_spec(package)
        path = None if spec is None or spec.origin is None else Path(spec.origin).parent / _STANDARD
        if path is not None and path.is_file():
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
            return from_merges(lines[1 : _WORDS - 2 - 2 * 256 + 1])
    raise BundleError(
        f"{missing}: no tokenizer: checkpoints in one file bring none: put the folder tokenizer (vocab.json, merges.txt) of any "
        "Stable Diffusion there, or pip install open-clip-torch, whose vocabulary is then taken"
    )


def from_merges(merges: list[str]) -> tuple[dict[str, int], list[str]]:
    """CLIP's vocabulary as its merges define it: bytes, bytes that end a word, what each merge makes, and the two marks."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
    words = symbols + [f"{symbol}</w>" for symbol in symbols] + [pair.replace(" ", "") for pair in merges]
    return {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}, merges


def _text(token: Any) -> str:
    """A special token as configs write it: a string, or an object with `content`."""
    return str(cast("dict[str, Any]", token).get("content", "")) if isinstance(token, dict) else str(token or "")
