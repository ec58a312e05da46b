"""Between the file system and the pipeline: requests from files and options, and names for the images to write."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..models.errors import RequestError
from ..models.formats.atomic_file import check_writable
from ..models.formats.small_file import MAX_CONFIG, read_text
from ..runtime import reproduce
from ..runtime.images import image_io
from ..runtime.metadata import image_files
from ..runtime.metadata.record import Record
from ..runtime.prompt.grammar import NUMBER
from ..runtime.request import Fields, Option, Request


class Recorded(NamedTuple):
    """An image made by diffusette, and its record."""

    path: Path
    record: Record


def recorded(path: Path) -> Recorded:
    """The image `path` with its record.

    Raises:
        RequestError: it cannot be read, or has no record.
    """
    record = image_files.read(path).record
    if record is None:
        raise RequestError(f"{path}: no record; expected an image made by diffusette, with its metadata")
    return Recorded(path, record)


def request_of(prompt: str | None, source: Recorded | None, options: Mapping[str, Any]) -> Request:
    """The request for `prompt` with `options` (fields of `Request` by name; `init` and `mask` are paths of images, `loras` are
    FILE or FILE:WEIGHT).

    With `source`: the request of its record, changed by `options`.

    Raises:
        RequestError: an image cannot be read, or the record of `source` needs another input.
        click.UsageError: there is no prompt.
    """
    fields = dict(options)
    if "init" in fields:
        fields["init"] = image_io.read(fields["init"], "init image")
    if "mask" in fields:
        fields["mask"] = image_io.read_mask(fields["mask"])
    if "loras" in fields:
        fields["loras"] = tuple(lora_of(text) for text in fields["loras"])
    if "sampler_options" in fields:
        fields["sampler_options"] = dict(option_of(text) for text in fields["sampler_options"])
    for name in ("timesteps", "sigmas"):
        if name in fields:
            fields[name] = numbers_of(name, fields[name])
    if source is not None:
        return reproduce.request_of(source.record, {**fields, **({} if prompt is None else {"prompt": prompt})}, str(source.path))
    if prompt is None:
        raise click.UsageError('no prompt; expected text, for example: diffusette generate "red apple, flat style"')
    return Request(prompt, **Fields(**fields))


def parent_of(init: Path | None) -> bytes | None:
    """The file that an image starts from, which its signature names as its parent.

    Raises:
        RequestError: it cannot be read.
    """
    return None if init is None else image_io.file_bytes(init, "init image")


def lora_of(text: str) -> tuple[Path, float]:
    """FILE or FILE:WEIGHT as a path and a weight, 1 if there is none."""
    path, colon, weight = text.rpartition(":")
    return (Path(path), float(weight)) if path and colon and re.fullmatch(NUMBER, weight) else (Path(text), 1.0)


def option_of(text: str) -> tuple[str, Option]:
    """NAME=VALUE as a name and a number, true or false, or a word.

    Raises:
        RequestError: it has not that form.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not name or not equals:
        raise RequestError(f"sampler option {text!r}: expected NAME=VALUE, such as eta=0.5")
    if value.lower() in {"true", "false"}:
        return name, value.lower() == "true"
    if re.fullmatch(r"[+-]?\d{1,18}", value):
        return name, int(value)
    return name, float(value) if re.fullmatch(NUMBER, value) else value


def numbers_of(name: str, text: str) -> tuple[float, ...]:
    """The numbers in `text`, with commas between them; messages begin with `name`.

    Raises:
        RequestError: there is something else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = next((part for part in parts if not re.fullmatch(NUMBER, part)), "" if not parts else None)
    if wrong is not None:
        raise RequestError(f"{name}: {wrong!r} is not a number; expected numbers separated by commas, such as 999,800,600,400,200")
    return tuple(float(part) for part in parts)


def lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file, blank ones left out.

    Raises:
        BundleError: it is not a regular file of UTF-8 text, or too large.
    """
    return tuple(line for line in read_text(path, MAX_CONFIG, "one prompt per line in UTF-8").splitlines() if line.strip())


MAX_NAME = 255
"""Bytes of a file's name on the usual file systems."""
SEEDS = 40
"""Bytes of the seed and the variation's in a file's name."""


def paths_for(output: Path | None, request: Request) -> Callable[[Record], Path]:
    """Record → path of its image: `output`, with the seed before the ending if there are several images, and the variation's if any.

    Without `output`: the prompt's first words and the seeds, in the current folder.

    Raises:
        RequestError: the folder does not exist, the name is too long, or the format of the ending cannot be written.
    """
    if output is None:
        words = "-".join(re.findall(r"\w+", request.prompt.casefold())[:6])[:60]
        words = words.encode("utf-8", "replace")[:120].decode("utf-8", "ignore") or "image"  # file systems count bytes
        return lambda record: Path(f"{words}-{_seeds(record)}.png")
    image_files.format_of(output)
    if not output.parent.is_dir():
        raise RequestError(f"{output.parent}: no such folder; create it first, or write elsewhere with -o")
    if output.is_dir():
        raise RequestError(f"{output} is a folder; expected a file name, such as {output / 'image.png'}")
    if len(os.fsencode(output.name)) > MAX_NAME - (SEEDS if request.count > 1 else 0):
        raise RequestError(f"{output.name}: a name of {len(os.fsencode(output.name))} bytes; expected at most {MAX_NAME - SEEDS}")
    check_writable(output if request.count == 1 else output.with_name("image"))
    if request.count == 1:
        return lambda record: output  # noqa: ARG005  # one signature
    return lambda record: output.with_name(f"{output.stem}-{_seeds(record)}{output.suffix}")


def _seeds(record: Record) -> str:
    return "-".join(str(seed) for seed in (record.seed, record.extra.get("variation_seed")) if seed is not None)
