"""Write CLIP tokenizers into a bundle, always as `vocab.json` and `merges.txt`."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from ...models.errors import BundleError
from ...models.formats import clip_vocabulary
from ...models.formats.clip_vocabulary import END, START, Vocabulary
from ...models.formats.small_file import optional_json
from ...models.manifest import Tokenizer

_STANDARD, _WORDS = "bpe_simple_vocab_16e6.txt.gz", 49_408
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}


def convert(source: Path, destination: Path, positions: int, rows: int) -> Tokenizer:
    """Writes the tokenizer of the folder `source` into `destination`; `positions` is what the text encoder can
    take, `rows` the number of its token embeddings.

    transformers 5 saves `tokenizer.json` only; older ones vocabulary and merges. The runtime reads the latter.

    Raises:
        BundleError: no tokenizer, or not CLIP's byte-pair kind, or its padding token is unknown.
    """
    vocabulary, merges, added = clip_vocabulary.read(source) if source.is_dir() else standard(source)
    settings, mapped = optional_json(source / "tokenizer_config.json"), optional_json(source / "special_tokens_map.json")
    if not source.is_dir() and source.name == "tokenizer_2":
        settings = {"pad_token": "!"}
    special = {key: _text(settings.get(key) or mapped.get(key)) or usual for key, usual in SPECIAL.items()}
    for key, token in special.items():
        if token not in vocabulary:
            raise BundleError(f"{source}: {key} {token!r} is not in the vocabulary: expected CLIP's tokenizer")
    if added and max(added.values()) >= rows:
        word = max(added, key=added.__getitem__)
        raise BundleError(
            f"{source}: the added token {word!r} has id {added[word]}, but the text encoder has {rows} rows: fetch both again"
        )
    wanted = settings.get("model_max_length")
    length = min(int(wanted), positions) if isinstance(wanted, int | float) and wanted > 2 else positions
    destination.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    files = {"vocab.json": vocabulary, "tokenizer_config.json": config, "special_tokens_map.json": special}
    for name, value in (files | ({"added_tokens.json": added} if added else {})).items():
        (destination / name).write_text(
            json.dumps(value, ensure_ascii=False, indent=None if name == "vocab.json" else 2), "utf-8", newline="\n"
        )
    if not source.is_dir():
        _write_licence(destination)
    (destination / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges), "utf-8", newline="\n"
    )
    return Tokenizer(folder=destination.name, length=length, pad=vocabulary[special["pad_token"]])


_PACKAGES = {"open_clip": "open_clip_torch", "clip": "clip"}
"""Modules that contain the standard vocabulary, and their distributions."""


def _write_licence(destination: Path) -> None:
    """Keep the licence of the package that the vocabulary comes from."""
    for module, name in _PACKAGES.items():
        if find_spec(module) is None:
            continue
        with suppress(PackageNotFoundError):
            files = distribution(name).files or ()
            licences = [Path(str(file.locate())).read_bytes() for file in files if file.name.startswith(("LICENSE", "LICENCE"))]
            if licences:
                (destination / "LICENSE").write_bytes(licences[0])
        return


def standard(missing: Path) -> Vocabulary:
    """The vocabulary and the merges that OpenAI trained and every Stable Diffusion uses, from the package open_clip or clip.

    Checkpoints in one file bring no tokenizer; `missing` is where one would be looked for first.

    Raises:
        BundleError: neither package is installed.
    """
    for package in _PACKAGES:
        spec = find_spec(package)
        path = None if spec is None or spec.origin is None else Path(spec.origin).parent / _STANDARD
        if path is not None and path.is_file():
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
            return from_merges(lines[1 : _WORDS - 2 - 2 * 256 + 1])
    raise BundleError(
        f"{missing}: no tokenizer, and single-file checkpoints contain none; put the folder tokenizer (vocab.json, merges.txt) of any "
        'Stable Diffusion model there, or pip install "diffusette[one-file]"'
    )


def from_merges(merges: list[str]) -> Vocabulary:
    """CLIP's vocabulary as its merges define it: bytes, bytes that end a word, what each merge makes, and the two marks."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
    words = symbols + [f"{symbol}</w>" for symbol in symbols] + [pair.replace(" ", "") for pair in merges]
    tokens = {word: number for number, word in enumerate([*words, START, END])}
    return Vocabulary(tokens, [(left, right) for left, _, right in (pair.partition(" ") for pair in merges)], {})


def _text(token: Any) -> str:
    """A special token as configs write it: a string, or an object with `content`."""
    return str(cast("dict[str, Any]", token).get("content", "")) if isinstance(token, dict) else str(token or "")
