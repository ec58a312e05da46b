"""The record of a picture, and the text about it that AUTOMATIC1111's web UI writes and reads.

```
prompt, on as many lines as it has
Negative prompt: likewise
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 512x512, Model hash: …, Model: …
```

In the last line a value with a comma, a colon or a line break is quoted as in JSON. The text is for other tools: a prompt
with a line "Negative prompt: …" cannot be told from a negative prompt in it. The record can.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from ..models.errors import RequestError
from .hires import UPSCALERS
from .prompts import clean
from .samplers import SAMPLERS
from .schedules import SCHEDULES

MAX_RECORD = 1 << 20
"""Bytes of a record that are read."""

_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r"\w[\w /-]{0,60}")
_PLAIN = {
    "Steps": "steps",
    "Sampler": "sampler",
    "Schedule type": "schedule",
    "CFG scale": "guidance",
    "Image CFG scale": "image_guidance",
    "Seed": "seed",
    "Variation seed": "variation_seed",
    "Variation seed strength": "variation",
    "Model hash": "model_hash",
    "Model": "model",
    "Denoising strength": "strength",
    "Mask blur": "mask_blur",
    "Masked area padding": "mask_padding",
    "Hires upscale": "hires",
    "Hires steps": "hires_steps",
    "Hires upscaler": "hires_upscaler",
    "Refiner switch at": "refiner_start",
    "Clip skip": "clip_skip",
    "RNG": "rng",
}
"""Our names of what the web UI calls otherwise."""
_OPTIONS = {"eta": "Eta", "s_churn": "Sigma churn", "s_tmin": "Sigma tmin", "s_tmax": "Sigma tmax", "s_noise": "Sigma noise"}
"""The web UI's names of sampler options."""
_AREA, _ONLY_MASKED = "Inpaint area", "Only masked"
_LABELS = {field: label for label, field in _PLAIN.items()} | {"hires_strength": "Denoising strength", "init": "", "mask": ""}
_NUMBERS = {
    **dict.fromkeys(("steps", "seed", "variation_seed", "mask_padding", "hires_steps", "clip_skip"), int),
    **dict.fromkeys(("guidance", "image_guidance", "strength", "variation", "mask_blur", "hires", "refiner_start"), float),
}
_FLOAT = r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,3})?"
_JSON = json.JSONDecoder()


def tool() -> str:
    """The program's name and version. They stand in the package above, which the runtime does not import."""
    return f"Diffusette {getattr(sys.modules[__name__.partition('.')[0]], '__version__', '')}".rstrip()


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What it takes to draw a picture again. A field that this version does not know is passed over."""

    prompt: str
    """As it was drawn: `prompts.clean` has been over it, and over `negative`."""
    negative: str = ""
    seed: int
    steps: int
    guidance: float
    sampler: str
    """A name of `samplers.SAMPLERS`."""
    schedule: str
    """A name of `schedules.SCHEDULES`."""
    width: int
    height: int
    model: str = ""
    model_hash: str = ""
    """SHA-256 in hex, whole."""
    extra: dict[str, Any] = {}
    """Other fields of the request by their names, where they are not the default; numbers, text, lists and dictionaries."""
    version: str = msgspec.field(default_factory=tool)
    """The program that drew it."""

    def __post_init__(self) -> None:
        for field, text in (("prompt", self.prompt), ("negative", self.negative)):
            msgspec.structs.force_setattr(self, field, clean(text)[0])


def to_json(record: Record) -> str:
    """`record` in JSON; the same record gives the same text.

    Raises:
        RequestError: something in it is no JSON, such as a lone surrogate.
    """
    try:
        return msgspec.json.encode(record, order="deterministic").decode()
    except (UnicodeError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise RequestError(f"metadata: the record cannot be stored ({error}): expected text and numbers") from error


def from_json(data: str | bytes) -> Record | None:
    """The record in `data`; None if it is none, or a damaged one."""
    try:
        return msgspec.json.decode(data, type=Record) if len(data) <= MAX_RECORD else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def compose(record: Record) -> str:
    """The web UI's text for `record`."""
    sampler, schedule = SAMPLERS.get(record.sampler), SCHEDULES.get(record.schedule)
    values: dict[str, object] = {
        "Steps": record.steps,
        "Sampler": sampler.label if sampler else record.sampler,
        "Schedule type": schedule.label if schedule else record.schedule,
        "CFG scale": record.guidance,
        "Seed": record.seed,
        "Size": f"{record.width}x{record.height}",
        "Model hash": record.model_hash[:10],
        "Model": record.model,
    }
    for field, value in sorted(_shown(record.extra).items()):
        label = _LABELS.get(field, field.replace("_", " ").capitalize())
        if isinstance(value, (str, int, float)) and _KEY.fullmatch(label) and label not in values:
            values[label] = value + 1 if field == "clip_skip" and isinstance(value, int) else value  # the web UI counts from 1
    values["Version"] = record.version
    last = ", ".join(f"{label}: {_quoted(value)}" for label, value in values.items() if value != "")
    negative = f"\n{_NEGATIVE} {record.negative}" if record.negative else ""
    return f"{record.prompt}{negative}\n{last}".replace("\0", "\ufffd")


def _shown(extra: Mapping[str, Any]) -> dict[str, Any]:
    """`extra` with what the web UI writes otherwise."""
    found = {**extra}
    options = found.pop("sampler_options", {})
    if isinstance(options, dict):
        found |= {_OPTIONS.get(name, name): value for name, value in cast("dict[str, Any]", options).items()}
    if found.pop("only_masked", False):
        found[_AREA] = _ONLY_MASKED
    upscaler = UPSCALERS.get(str(found.get("hires_upscaler")))
    if upscaler:
        found["hires_upscaler"] = upscaler.label
    return found


def parse(text: str) -> dict[str, Any]:
    """What the web UI's `text` says, by the names of `Record`'s fields; what has no such name is in "extra".

    Names of samplers and schedules stay as they are written; `samplers.find` and `schedules.find` know them.
    """
    lines = text.strip().split("\n")
    settings = _settings(lines[-1])
    if len(settings) < 3:
        settings = {}
    else:
        lines.pop()
    at = next((index for index, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:]).strip().removeprefix(_NEGATIVE)
    found: dict[str, Any] = {"prompt": "\n".join(lines[:at]).strip(), "negative": negative.strip()}
    extra: dict[str, str] = {}
    options = {name: float(settings.pop(label)) for name, label in _OPTIONS.items() if re.fullmatch(_FLOAT, settings.get(label, ""))}
    if options:
        found["sampler_options"] = options
    if settings.get(_AREA) in {_ONLY_MASKED, "Whole picture"}:
        found["only_masked"] = settings.pop(_AREA) == _ONLY_MASKED
    for label, value in settings.items():
        size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", value) if label == "Size" else None
        if size:
            found |= {"width": int(size[1]), "height": int(size[2])}
        elif label in _PLAIN:
            try:
                found[_PLAIN[label]] = _NUMBERS.get(_PLAIN[label], str)(value)
            except ValueError:
                extra[label] = value
        else:
            extra[label] = value
    if "hires" in found and "strength" in found:
        found["hires_strength"] = found.pop("strength")
    if "clip_skip" in found:
        found["clip_skip"] = max(0, found["clip_skip"] - 1)
    return {**found, "extra": extra}


def _settings(line: str) -> dict[str, str]:
    """`Key: value, Key: "quoted, value"`; nothing if the line is not of that form. One pass."""
    found: dict[str, str] = {}
    place = 0
    while place < len(line):
        colon = line.find(":", place)
        key = line[place:colon].strip()
        if colon < 0 or not _KEY.fullmatch(key):
            return {}
        place = colon + 1
        while line[place : place + 1] == " ":
            place += 1
        value: object = None
        if line[place : place + 1] == '"':
            try:
                value, place = _JSON.raw_decode(line, place)
            except (ValueError, RecursionError):
                value = None
        comma = line.find(",", place)
        comma = len(line) if comma < 0 else comma
        found[key] = str(value) if value is not None else line[place:comma].strip()
        place = comma + 1
    return found


def _quoted(value: object) -> str:
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n\r"]', text) or text != text.strip() else text
