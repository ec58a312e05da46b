"""Between the file system and the pipeline: requests out of files and options, names for pictures that are to be written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..models.errors import RequestError
from . import adapters, metadata, pictures
from .grammar import NUMBER
from .request import Fields, Request


def request_of(prompt: str | None, source: Path | None, options: Mapping[str, Any]) -> Request:
    """The request for `prompt` with `options` (fields of `Request` by name; `init` and `mask` are paths of pictures, `loras` are
    FILE or FILE:WEIGHT).

    With `source`, a picture of ours: what its record says, changed by what is given.

    Raises:
        RequestError: a picture cannot be read, `source` has no record of ours, or there is no prompt.
    """
    fields = dict(options)
    if "init" in fields:
        fields["init"] = pictures.read(fields["init"], "init picture")
    if "mask" in fields:
        fields["mask"] = pictures.read_mask(fields["mask"])
    if "loras" in fields:
        fields["loras"] = tuple(lora_of(text) for text in fields["loras"])
    if source is not None:
        return _from_record(source, {**fields, **({} if prompt is None else {"prompt": prompt})})
    if prompt is None:
        raise RequestError('no prompt: expected words to draw, as in diffusette generate "red apple, flat style"')
    return Request(prompt, **Fields(**fields))


def lora_of(text: str) -> tuple[Path, float]:
    """FILE or FILE:WEIGHT as a path and a weight, 1 if there is none."""
    path, colon, weight = text.rpartition(":")
    return (Path(path), float(weight)) if path and colon and re.fullmatch(NUMBER, weight) else (Path(text), 1.0)


def lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file, blank ones left out.

    Raises:
        RequestError: it cannot be read, or is no UTF-8 text.
    """
    try:
        return tuple(line for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read as text ({error}): expected a prompt a line in UTF-8") from error


def _from_record(source: Path, given: Mapping[str, Any]) -> Request:
    """The request that drew `source`, with what is `given` changed."""
    record = metadata.read(source).record
    if record is None:
        raise RequestError(f"{source}: has no record of ours: expected a picture that diffusette drew, with its metadata")
    if record.extra.get("strength") is not None and "init" not in given:
        raise RequestError(f"{source}: was drawn over another picture, which it does not hold: give that one with --init")
    extra = {name: value for name, value in record.extra.items() if name != "safety"}  # said of that picture; this one is checked anew
    strange = extra.keys() - Fields.__annotations__.keys()
    if strange:
        raise RequestError(
            f"{source}: its record has {', '.join(sorted(strange))[:200]}, which this version does not know: upgrade diffusette"
        )
    fields: dict[str, Any] = {
        "negative": record.negative,
        "width": record.width,
        "height": record.height,
        "steps": record.steps,
        "guidance": record.guidance,
        "sampler": record.sampler,
        "schedule": record.schedule,
        "seed": record.seed,
        **extra,
        **adapters.recorded(record.extra, given, same_prompt="prompt" not in given),
    }
    return replace(Request(record.prompt, **Fields(**fields)), **given)


def paths_for(output: Path | None, request: Request) -> Callable[[int], Path]:
    """Seed → path of its picture: `output`, with the seed before the ending if there are several.

    Without `output`, a name made of the prompt's first words and the seed, in the current folder.

    Raises:
        RequestError: the folder does not exist, or the ending is of no format that can be written.
    """
    if output is None:
        words = "-".join(re.findall(r"\w+", request.prompt.casefold())[:6])[:60] or "picture"
        return lambda seed: Path(f"{words}-{seed}.png")
    metadata.format_of(output)
    if not output.parent.is_dir():
        raise RequestError(f"{output.parent}: no such folder: create it first, or write elsewhere with -o")
    if output.is_dir():
        raise RequestError(f"{output} is a folder: expected the name of a picture, such as {output / 'picture.png'}")
    if request.count == 1:
        return lambda seed: output  # noqa: ARG005  # one signature
    return lambda seed: output.with_name(f"{output.stem}-{seed}{output.suffix}")
