"""Between JSON and `Request`: fields by their names, images as bytes, LoRAs and embeddings by name, everything within limits."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ...models.errors import RequestError
from ...runtime.adapters.apply import find_lora
from ...runtime.images import image_io
from ...runtime.names import guess
from ...runtime.prompt import parse
from ...runtime.request import MAX_SEED, MAX_SIDE, Fields, Request, number_of, shown
from ...runtime.resolve import ResolvedRequest, resolve
from ..limits import Limits
from .models import Catalog, Offer
from .records import Options, Refused

NAMES = frozenset({"prompt", *Fields.__annotations__}) - {"lora_folder"}
"""The fields that a request may have."""
IMAGES = ("init", "mask")
WORD = 1000
"""Characters of a field that is a name."""


@dataclass(frozen=True)
class Asked:
    """What a client asked for, in whichever API."""

    fields: Mapping[str, Any]
    """Fields of `Request` by name, without images; LoRAs as [{"name", "weight"}], embeddings by name."""
    images: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """`init` and `mask` as the bytes of image files."""
    shown: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the job shows in the place of its images: {"image": id} or true."""


def check(asked: Asked, offer: Offer, catalog: Catalog, limits: Limits) -> ResolvedRequest:
    """Everything that can be found out about a request without running it.

    Raises:
        Refused: an unknown field, or a value beyond the server's limits.
        RequestError: the runtime would refuse it; the message names the field.
    """
    unknown = sorted(asked.fields.keys() - NAMES | set(IMAGES) & asked.fields.keys())
    if unknown:
        name = unknown[0][:100]
        raise Refused("invalid_request", f"{name}: no such field{guess(name, NAMES)}; the fields are {', '.join(sorted(NAMES))}", name)
    _bound(asked.fields, limits)
    resolved = resolve(request_of(asked.fields, asked.images, catalog), offer.manifest)
    largest = resolved.passes[-1]
    if largest.width * largest.height > limits.pixels:
        raise Refused("invalid_request", f"width: {largest.width} × {largest.height}, expected at most {_most(limits)}", "width")
    if resolved.steps > limits.steps or any(one.steps > limits.steps for one in resolved.passes):
        raise Refused("invalid_request", f"steps: {resolved.steps}, expected at most {limits.steps}", "steps")
    return resolved


def _bound(fields: Mapping[str, Any], limits: Limits) -> None:
    """Refuse before anything large is made."""
    for name in ("prompt", "negative"):
        text = fields.get(name)
        if isinstance(text, str) and len(text) > limits.prompt:
            raise Refused("invalid_request", f"{name}: {len(text):,} characters, expected at most {limits.prompt:,}", name)
    for name, value in fields.items():
        if name not in {"prompt", "negative"} and isinstance(value, str) and len(value) > WORD:
            raise Refused("invalid_request", f"{name}: {len(value):,} characters, expected at most {WORD}", name)
    for name, high in (("steps", limits.steps), ("hires_steps", limits.steps), ("count", limits.count)):
        if fields.get(name) is not None:
            number_of(name, fields[name], int, 1, high)
    _bound_pixels(fields, limits)
    for name in ("timesteps", "sigmas"):
        value = fields.get(name)
        if isinstance(value, list) and len(cast("list[Any]", value)) > limits.steps + 1:
            raise Refused("invalid_request", f"{name}: expected at most {limits.steps + 1} numbers", name)


def _most(limits: Limits) -> str:
    """The largest image, in words."""
    side = math.isqrt(limits.pixels)
    return f"{limits.pixels:,} pixels, as many as {side} × {side} has"


def _bound_pixels(fields: Mapping[str, Any], limits: Limits) -> None:
    sides = [fields.get(name) for name in ("width", "height")]
    for name, side in zip(("width", "height"), sides, strict=True):
        if isinstance(side, int) and not 8 <= side <= MAX_SIDE:
            said = f"{name}: {shown(side)}, expected 8 to {MAX_SIDE}, and both sides together at most {_most(limits)}"
            raise Refused("invalid_request", said, name)
    if all(isinstance(side, int) for side in sides):
        factor = fields.get("hires") or 1.0
        enlarged = factor if isinstance(factor, (int, float)) and math.isfinite(factor) else 1.0
        pixels = cast("int", sides[0]) * cast("int", sides[1]) * max(1.0, enlarged) ** 2
        if pixels > limits.pixels:
            times = f", enlarged {enlarged:g} times," if enlarged > 1 else ","
            raise Refused("invalid_request", f"width: {sides[0]} × {sides[1]}{times} expected at most {_most(limits)}", "width")


def request_of(fields: Mapping[str, Any], images: Mapping[str, bytes], catalog: Catalog) -> Request:
    """The runtime's request.

    Raises:
        Refused: a LoRA or an embedding that is not in the server's folder, or no prompt. The message has names, never paths.
        RequestError: an image cannot be read.
    """
    found: dict[str, Any] = {name: value for name, value in fields.items() if value is not None or name in _MAY_BE_NONE}
    prompt = found.pop("prompt", None)
    if not isinstance(prompt, str):
        raise Refused("invalid_request", "prompt: missing, expected text", "prompt")
    _check_loras(prompt, catalog)
    if "init" in images:
        found["init"] = image_io.read(images["init"], "init image")
    if "mask" in images:
        found["mask"] = image_io.read_mask(images["mask"])
    loras = found.pop("loras", ())
    if loras:
        found["loras"] = tuple(_lora(one, catalog) for one in _listed("loras", loras))
    names = found.pop("embeddings", ())
    if names:
        found["embeddings"] = tuple(catalog.embedding(name) for name in _listed("embeddings", names))
    for name in ("guidance_interval", "original_size", "crop", "timesteps", "sigmas"):
        if isinstance(found.get(name), list):
            found[name] = tuple(found[name])
    if catalog.loras_folder.is_dir():
        found["lora_folder"] = catalog.loras_folder
    return Request(prompt, **Fields(**found))


def _check_loras(prompt: str, catalog: Catalog) -> None:
    """Refuse a LoRA of the prompt that is not there, in the words of the server."""
    for named in parse.parse(prompt).loras:
        try:
            find_lora(named.name, [catalog.loras_folder])
        except RequestError as error:
            has = ", ".join(catalog.loras()[:20]) or "none"
            said = f"prompt: <lora:{named.name[:100]}> is not in the server's folder of LoRAs (option --loras of the server); it has: {has}"
            raise Refused("invalid_request", said, "prompt") from error


_MAY_BE_NONE = frozenset(name for name, kind in Fields.__annotations__.items() if "None" in str(kind))


def _listed(name: str, value: object) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise Refused("invalid_request", f"{name}: expected a list", name)
    return list(cast("list[Any]", value))


def _lora(value: object, catalog: Catalog) -> tuple[Any, float]:
    given = cast("Any", value)
    if not isinstance(value, Mapping) or "name" not in value:
        raise Refused("invalid_request", 'loras: expected a list of {"name": …, "weight": …}', "loras")
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise Refused("invalid_request", "loras: expected a number as weight", "loras")
    return catalog.lora(given["name"]), float(weight)


def options_for(resolved: ResolvedRequest, template: Options) -> Options:
    """`template` with the seeds of `resolved`, so that every run of the job makes the same images."""
    return Options(
        seed=resolved.seed,
        variation_seed=resolved.variation_seed,
        count=resolved.count,
        format=template.format,
        quality=template.quality,
        partials=template.partials,
        waits=template.waits,
    )


def rest_of(request: Request, options: Options, first: int) -> Request:
    """The images of `request` from number `first` on."""
    varied = request.variation > 0
    return replace(
        request,
        seed=options.seed + (0 if varied else first),
        variation_seed=options.variation_seed + first,
        count=options.count - first,
    )


def random_seed(value: object) -> int | None:
    """A seed of another API, where -1 and null mean a random one.

    Raises:
        RequestError: not a whole number.
    """
    if value is None or value in (-1, "-1", ""):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"seed: {str(value)[:60]!r}, expected a whole number")
    return int(number_of("seed", value, int, 0, MAX_SEED))


def fresh_seed() -> int:
    """A random seed."""
    return secrets.randbelow(2**32)


def decided(resolved: ResolvedRequest) -> dict[str, Any]:
    """What was decided for the user."""
    first = resolved.passes[0]
    return {
        "width": first.width,
        "height": first.height,
        "steps": resolved.steps,
        "sampler": resolved.sampler,
        "schedule": resolved.schedule,
        "guidance": resolved.guidance,
        "seed": resolved.seed,
        **({"strength": resolved.strength} if resolved.init is not None else {}),
        **({"hires_steps": resolved.hires_steps, "hires_strength": resolved.hires_strength} if resolved.hires > 1 else {}),
    }
