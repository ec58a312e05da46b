"""Requests to records and back: the request fields that affect an image."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from PIL import Image

from ..models import manifest as manifests
from ..models.errors import RequestError
from ..models.manifest import Manifest
from .adapters import apply
from .denoising import Drawing
from .metadata.record import Record
from .normalize import NormalizedRequest, normalize
from .request import ONLY_WITH, Fields, Option, Request, is_default, specs
from .resolve import CUSTOM, ResolvedRequest

_OWN = {"prompt", "negative", "width", "height", "steps", "guidance", "sampler", "schedule", "seed"}
"""Request fields that every record has."""
_ELSEWHERE = {"count", "init", "mask", "loras", "lora_folder", "embeddings"}
"""Fields of the request as a whole, fields that are not plain values, and fields that `adapters` records."""
_SAID = {"init", "mask", "refiner", "safety", "provider", "memory"}
"""Entries of a record that are not request fields: hashes of images, the refiner, the safety checker's outcome, provider, memory plan."""
_CUSTOM = {"timesteps", "sigmas"}
_RECORDED: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "tuple[int, int]": tuple[int, int],
    "tuple[float, float]": tuple[float, float],
    "Sequence[float]": tuple[float, ...],
    "Mapping[str, Option]": dict[str, Option],
}
"""Type of a request field as it is written → type of its value in a record."""


def record_of(request: ResolvedRequest, drawing: Drawing, manifest: Manifest, more: Mapping[str, Any]) -> Record:
    """Everything that reproduces `drawing`; `more` is added unchanged."""
    own = replace(request, variation_seed=drawing.variation_seed)
    names = [field.name for field in dataclasses.fields(Request) if field.name not in _OWN | _ELSEWHERE]
    extra: dict[str, Any] = {name: getattr(own, name) for name in names if _counts(own, name)}
    if request.sampler_options:
        extra["sampler_options"] = dict(request.sampler_options)
    first = request.passes[0]
    return Record(
        prompt=request.prompt,
        negative=request.negative,
        seed=drawing.seed,
        steps=request.steps,
        guidance=request.guidance,
        sampler=request.sampler,
        schedule=request.schedule,
        width=first.width,
        height=first.height,
        model=manifest.source.name,
        model_hash=manifests.fingerprint(manifest),
        extra={**extra, **more},
    )


def _counts(request: Request, name: str) -> bool:
    """Whether a record has the field `name`; what matters only with another field is recorded with it, whatever its value."""
    if name in ONLY_WITH:
        other = ONLY_WITH[name]
        return not is_default(request, other) and (other not in ONLY_WITH or _counts(request, other))
    return not is_default(request, name)


def inputs(request: NormalizedRequest, refiner: Manifest | None) -> dict[str, str]:
    """The inputs of a request beside text and numbers: hashes of its images, and the refiner as A1111 names it."""
    found = {name: _digest(image) for name, image in (("init", request.init), ("mask", request.mask)) if image is not None}
    return found if refiner is None else {**found, "refiner": _named(refiner)}


def _named(manifest: Manifest) -> str:
    """A second model as A1111 writes it."""
    return f"{manifest.source.name} [{manifests.fingerprint(manifest)[:10]}]"


def _digest(image: Image.Image) -> str:
    """SHA-256 of mode, size and pixels, in hex; the file format does not matter."""
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


def differences(record: Record, request: Request, manifest: Manifest, refiner: Manifest | None, ran: Mapping[str, str]) -> list[str]:
    """Notes on why `request` with these models cannot reproduce the image of `record`; `ran` has the provider and memory plan in use."""
    found: list[str] = []
    if record.model_hash and record.model_hash != manifests.fingerprint(manifest):
        was = f"{record.model} [{record.model_hash[:10]}]"
        found.append(
            f"the image was generated with {was}, and this is {_named(manifest)}: the result will differ; select its model with --model"
        )
    used = {**inputs(normalize(request), refiner), **ran}
    found += [
        f"{name} differs from the original: the result will not match"
        for name in sorted(record.extra.keys() & {"init", "mask", "refiner"})
        if record.extra[name] != used.get(name)
    ]
    found += [
        f"the original ran with {name} {record.extra[name]}, this ran with {used[name]}: the images may differ by rounding"
        for name in sorted(record.extra.keys() & ran.keys())
        if record.extra[name] != used[name]
    ]
    return found


def machine_of(record: Record) -> dict[str, str]:
    """The provider and memory plan that an image was generated with, as far as its record has them."""
    return {name: value for name in ("provider", "memory") if isinstance(value := record.extra.get(name), str)}


def request_of(record: Record, given: Mapping[str, Any], where: str) -> Request:
    """The request that reproduces `record`, changed by what is `given`; messages begin with `where`.

    Raises:
        RequestError: the image needs an input that records do not contain, or the record is damaged or of a newer version.
    """
    for name, what in (("init", "an init image"), ("mask", "a mask")):
        if (name in record.extra or (name == "init" and "strength" in record.extra)) and name not in given:
            raise RequestError(f"{where}: was generated from {what}, which is not in the file; add it with --{name}")
    adapted = apply.recorded(record.extra, given, same_prompt="prompt" not in given)
    strange = record.extra.keys() - Fields.__annotations__.keys() - _SAID
    if strange:
        raise RequestError(f"{where}: its record has unknown fields ({', '.join(sorted(strange))[:200]}); upgrade diffusette")
    fields: dict[str, Any] = {}
    for name, value in record.extra.items():
        if name in _SAID | _ELSEWHERE:
            continue
        try:
            fields[name] = msgspec.convert(value, _RECORDED[specs()[name][0].removesuffix(" | None")])
        except msgspec.ValidationError as error:
            raise RequestError(f"{where}: {name} in its record is damaged ({error}); generate without --from") from error
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
