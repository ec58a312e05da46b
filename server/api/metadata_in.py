"""Settings from image files: what can be applied here, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from ...models.errors import RequestError
from ...runtime import detector
from ...runtime.metadata import image_files
from ...runtime.metadata.image_files import Found
from ...runtime.names import key_of
from ...runtime.request import Fields, number_of, specs
from ...runtime.sampling.samplers import find_sampler
from ...runtime.sampling.schedules import find_schedule
from ..jobs.models import Catalog
from ..jobs.records import Refused

_SAID = {"version", "model", "model_hash", "extra", "provider", "memory", "safety", "refiner"}
"""Entries of a record that are no settings."""


def read(data: bytes) -> Found:
    """The metadata in the bytes of an image file.

    Raises:
        Refused: not a readable PNG, JPEG or WebP image.
    """
    with _refusing():
        return image_files.read(data)


@contextmanager
def _refusing() -> Generator[None]:
    try:
        yield
    except RequestError as error:
        raise Refused("invalid_request", str(error), None, 400) from error


def facts_of(path: Path) -> dict[str, Any]:
    """All metadata and marks of a file of the gallery; empty if it cannot be read."""
    try:
        report, found = detector.examine(path)
        return {**found.facts(), "marks": msgspec.to_builtins(report)}
    except RequestError:
        return {}


def settings_of(data: bytes, catalog: Catalog) -> dict[str, Any]:
    """What an image's file says, as request fields, and what its marks prove.

    Raises:
        Refused: not a readable image.
    """
    with _refusing():
        report, found = detector.examine(data)
    every = found.settings()
    tool = found.tool or (found.other.tool if found.other else None) or ("AUTOMATIC1111" if found.text else None)
    settings: dict[str, Any] = {}
    unapplied: list[dict[str, str]] = []
    extra: object = every.get("extra")
    values = {**every, **(cast("dict[str, Any]", extra) if isinstance(extra, dict) else {})}
    for name, value in values.items():
        if name in _SAID:
            continue
        try:
            reason = _apply(name, value, settings, catalog)
        except (RequestError, Refused) as error:
            reason = str(error)
        if reason:
            unapplied.append({"key": name, "value": str(value)[:200], "reason": reason})
    model, reason = _model(every, catalog)
    if reason:
        unapplied.append({"key": "model", "value": str(every.get("model"))[:200], "reason": reason})
    marks = msgspec.to_builtins(report)
    return {"tool": tool, "settings": settings, "text": found.text, "unapplied": unapplied, "model": model, "marks": marks}


def _model(every: Mapping[str, Any], catalog: Catalog) -> tuple[str | None, str]:
    """The id of the model that made the image, if it is here; and why not."""
    name, digest = str(every.get("model") or ""), str(every.get("model_hash") or "")
    if not name and not digest:
        return None, ""
    for offer in catalog.offers.values():
        if digest and offer.hash.startswith(digest[:64]):
            return offer.id, ""
    for offer in catalog.offers.values():
        if name and key_of(offer.name) == key_of(name):
            return offer.id, "" if not digest else "a model of this name is here, but another version of it"
    return None, "this model is not on this server; the image will differ"


def _apply(name: str, value: Any, settings: dict[str, Any], catalog: Catalog) -> str:
    """Put a value into `settings`; returns why not.

    Raises:
        RequestError, Refused: the value is not accepted here.
    """
    if name in {"init", "mask"}:
        return "the image that it started from is not in the file"
    if name == "loras":
        return _files(name, value, settings, catalog.loras())
    if name == "embeddings":
        return _files(name, value, settings, catalog.embeddings())
    if name != "prompt" and name not in Fields.__annotations__:
        return "this server has no such setting"
    checks: dict[str, Callable[[str], object]] = {"sampler": find_sampler, "schedule": find_schedule}
    if name in checks:
        checks[name](str(value))
    elif specs()[name][2].low is not None and not isinstance(value, (list, tuple)):
        kind = specs()[name][0].removesuffix(" | None")
        _, _, spec = specs()[name]
        assert spec.low is not None
        assert spec.high is not None
        value = number_of(name, value, int if kind == "int" else float, spec.low, spec.high)
    settings[name] = value
    return ""


def _files(name: str, value: object, settings: dict[str, Any], known: list[str]) -> str:
    """LoRAs or embeddings of a record, as far as the server has files of their names."""
    given = cast("list[object]", value) if isinstance(value, list) else []
    files = [cast("dict[str, Any]", one) for one in given if isinstance(one, dict)]
    here = [one for one in files if one.get("name") in known]
    if name == "loras":
        found = [{"name": one["name"], "weight": one.get("weight", 1.0)} for one in here if not one.get("in_prompt")]
    else:
        found = [one["name"] for one in here]
    if found:
        settings[name] = found
    missing = [str(one.get("name")) for one in files if one not in here]
    return f"not on this server: {', '.join(missing)[:200]}" if missing else ""
