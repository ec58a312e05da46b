"""Requests into records and back: what of a request decides how its pictures come out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_type_hints

import msgspec
from PIL import Image

from ..models import manifest as manifests
from ..models.errors import RequestError
from ..models.manifest import Manifest
from . import adapters
from .drawing import Drawing
from .job import CUSTOM, Job
from .parameters import Record
from .request import Fields, Request

_OWN = {"prompt", "negative", "width", "height", "steps", "guidance", "sampler", "schedule", "seed"}
"""Fields of a request that every record has."""
_ELSEWHERE = {"count", "init", "mask", "loras", "lora_folder", "embeddings"}
"""What a picture alone does not have, what is no plain value, and what `adapters` records."""
_ONLY_WITH = {
    "strength": "init",
    "mask_blur": "mask",
    "only_masked": "mask",
    "mask_padding": "only_masked",
    "hires_steps": "hires",
    "hires_strength": "hires",
    "hires_upscaler": "hires",
    "variation_seed": "variation",
}
"""Fields that count where another is not its default; there they are recorded whatever they are."""
_SAID = {"init", "mask", "refiner", "safety"}
"""What a record says and no request is told: which pictures and refiner it takes, what became of the safety filter."""
_CUSTOM = {"timesteps", "sigmas"}
_DEFAULTS = Request("")


def record_of(job: Job, drawing: Drawing, manifest: Manifest, said: Mapping[str, Any]) -> Record:
    """What it takes to draw `drawing` again; `said` goes into it as it is."""
    request = replace(job.request, variation_seed=drawing.variation_seed)
    names = [field.name for field in dataclasses.fields(Request) if field.name not in _OWN | _ELSEWHERE]
    extra: dict[str, Any] = {name: getattr(request, name) for name in names if _counts(request, name)}
    if request.sampler_options:
        extra["sampler_options"] = dict(request.sampler_options)
    first = job.passes[0]
    return Record(
        prompt=request.prompt,
        negative=request.negative,
        seed=drawing.seed,
        steps=job.steps,
        guidance=job.guidance,
        sampler=job.sampler.name,
        schedule=job.schedule,
        width=first.width,
        height=first.height,
        model=manifest.source.name,
        model_hash=manifests.fingerprint(manifest),
        extra={**extra, **said},
    )


def _counts(request: Request, name: str) -> bool:
    if name in _ONLY_WITH:
        other = _ONLY_WITH[name]
        return getattr(request, other) != getattr(_DEFAULTS, other) and (other not in _ONLY_WITH or _counts(request, other))
    return getattr(request, name) != getattr(_DEFAULTS, name)


def inputs(request: Request, refiner: Manifest | None) -> dict[str, str]:
    """What beside its words and numbers a request draws from: hashes of its pictures, and the refiner as A1111 names it."""
    found = {name: _digest(image) for name, image in (("init", request.init), ("mask", request.mask)) if image is not None}
    return found if refiner is None else {**found, "refiner": _named(refiner)}


def _named(manifest: Manifest) -> str:
    """As A1111 writes a model beside the main one."""
    return f"{manifest.source.name} [{manifests.fingerprint(manifest)[:10]}]"


def _digest(image: Image.Image) -> str:
    """Of size and pixels, in whatever file they came: SHA-256 in hex."""
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


def differences(record: Record, request: Request, manifest: Manifest, refiner: Manifest | None) -> list[str]:
    """What to say where `request`, drawn with these models, cannot give the picture of `record` again: it stands on other things."""
    found: list[str] = []
    if record.model_hash and record.model_hash != manifests.fingerprint(manifest):
        was = f"{record.model} [{record.model_hash[:10]}]"
        found.append(f"the picture was drawn with {was}, and this is {_named(manifest)}: it will differ; give its model with --model")
    used = inputs(request, refiner)
    found += [
        f"{name} is another one than the picture was drawn with: it will differ"
        for name in sorted(_SAID & record.extra.keys() & {"init", "mask", "refiner"})
        if record.extra[name] != used.get(name)
    ]
    return found


def request_of(record: Record, given: Mapping[str, Any], where: str) -> Request:
    """The request that gave `record`, with what is `given` changed; messages begin with `where`.

    Raises:
        RequestError: something is needed that a record does not hold, or the record is of a newer version, or damaged.
    """
    for name, what in (("init", "over another picture"), ("mask", "through a mask")):
        if (name in record.extra or (name == "init" and "strength" in record.extra)) and name not in given:
            raise RequestError(f"{where}: was drawn {what}, which it does not hold: give that one with --{name}")
    adapted = adapters.recorded(record.extra, given, same_prompt="prompt" not in given)
    strange = record.extra.keys() - Fields.__annotations__.keys() - _SAID
    if strange:
        raise RequestError(
            f"{where}: its record has {', '.join(sorted(strange))[:200]}, which this version does not know: upgrade diffusette"
        )
    hints = get_type_hints(Fields)
    fields: dict[str, Any] = {}
    for name, value in record.extra.items():
        if name in _SAID | _ELSEWHERE:
            continue
        try:
            fields[name] = msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise RequestError(f"{where}: {name} of its record is damaged ({error}): draw without --from") from error
    if record.schedule != CUSTOM and not given.keys() & _CUSTOM:
        fields |= {"schedule": record.schedule, "steps": record.steps}
    elif given.keys() & {"steps", "schedule", *_CUSTOM}:  # another schedule takes the place of the recorded one
        fields = {name: value for name, value in fields.items() if name not in _CUSTOM}
    if "sampler" in given:
        fields.pop("sampler_options", None)  # they are the recorded sampler's
    fields |= {
        "negative": record.negative,
        "width": record.width,
        "height": record.height,
        "guidance": record.guidance,
        "sampler": record.sampler,
        "seed": record.seed,
        **adapted,
    }
    return replace(Request(record.prompt, **Fields(**fields)), **given)
