"""Between the file system and the pipeline: requests out of files and options, names for pictures that are to be written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..models.errors import RequestError
from . import metadata, pictures, recording
from .grammar import NUMBER
from .parameters import Record
from .request import Fields, Request
from .samplers import Option


class Recorded(NamedTuple):
    """A picture of ours, and how it was drawn."""

    path: Path
    record: Record


def recorded(path: Path) -> Recorded:
    """The picture `path` of ours.

    Raises:
        RequestError: it cannot be read, or has no record of ours.
    """
    record = metadata.read(path).record
    if record is None:
        raise RequestError(f"{path}: has no record of ours: expected a picture that diffusette drew, with its metadata")
    return Recorded(path, record)


def request_of(prompt: str | None, source: Recorded | None, options: Mapping[str, Any]) -> Request:
    """The request for `prompt` with `options` (fields of `Request` by name; `init` and `mask` are paths of pictures, `loras` are
    FILE or FILE:WEIGHT).

    With `source`, a picture of ours: what its record says, changed by what is given.

    Raises:
        RequestError: a picture cannot be read, the record of `source` needs something else, or there is no prompt.
    """
    fields = dict(options)
    if "init" in fields:
        fields["init"] = pictures.read(fields["init"], "init picture")
    if "mask" in fields:
        fields["mask"] = pictures.read_mask(fields["mask"])
    if "loras" in fields:
        fields["loras"] = tuple(lora_of(text) for text in fields["loras"])
    if "sampler_options" in fields:
        fields["sampler_options"] = dict(option_of(text) for text in fields["sampler_options"])
    for name in ("timesteps", "sigmas"):
        if name in fields:
            fields[name] = numbers_of(name, fields[name])
    if source is not None:
        return recording.request_of(source.record, {**fields, **({} if prompt is None else {"prompt": prompt})}, str(source.path))
    if prompt is None:
        raise RequestError('no prompt: expected words to draw, as in diffusette generate "red apple, flat style"')
    return Request(prompt, **Fields(**fields))


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
    if re.fullmatch(r"[+-]?\d+", value):
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
        raise RequestError(f"{name}: {wrong!r} is no number: expected numbers with commas between them, such as 999,800,600,400,200")
    return tuple(float(part) for part in parts)


def lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file, blank ones left out.

    Raises:
        RequestError: it cannot be read, or is no UTF-8 text.
    """
    try:
        return tuple(line for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read as text ({error}): expected a prompt a line in UTF-8") from error


def paths_for(output: Path | None, request: Request) -> Callable[[Record], Path]:
    """Record → path of its picture: `output`, with the seed before the ending if there are several, and the variation's if it has one.

    Without `output`, a name made of the prompt's first words and the seeds, in the current folder.

    Raises:
        RequestError: the folder does not exist, or the ending is of no format that can be written.
    """
    if output is None:
        words = "-".join(re.findall(r"\w+", request.prompt.casefold())[:6])[:60] or "picture"
        return lambda record: Path(f"{words}-{_seeds(record)}.png")
    metadata.format_of(output)
    if not output.parent.is_dir():
        raise RequestError(f"{output.parent}: no such folder: create it first, or write elsewhere with -o")
    if output.is_dir():
        raise RequestError(f"{output} is a folder: expected the name of a picture, such as {output / 'picture.png'}")
    if request.count == 1:
        return lambda record: output  # noqa: ARG005  # one signature
    return lambda record: output.with_name(f"{output.stem}-{_seeds(record)}{output.suffix}")


def _seeds(record: Record) -> str:
    return "-".join(str(seed) for seed in (record.seed, record.extra.get("variation_seed")) if seed is not None)
