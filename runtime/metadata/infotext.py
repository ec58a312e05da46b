"""Convert records to and from the text that AUTOMATIC1111's web UI writes into images.

```
prompt, on one or more lines
Negative prompt: the same
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 512x512, Model hash: …, Model: …
```

In the last line, values with a comma, a colon or a line break are quoted as in JSON. The text is meant for other tools and is ambiguous: a
prompt may contain a line "Negative prompt: …". The record is exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from ..images.hires import UPSCALERS
from ..sampling.samplers import SAMPLERS
from ..sampling.schedules import SCHEDULES
from .record import Record

MAX_TEXT = 1 << 18
"""Characters of text that are read."""
MAX_VALUE = 1 << 12
"""Characters of a quoted value."""

_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r"\w[^,:\n\"{}]{0,60}")
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
"""The web UI's labels → names of our fields."""
_OPTIONS = {"eta": "Eta", "s_churn": "Sigma churn", "s_tmin": "Sigma tmin", "s_tmax": "Sigma tmax", "s_noise": "Sigma noise"}
"""Our sampler options → the web UI's labels."""
_AREA, _ONLY_MASKED = "Inpaint area", "Only masked"
_LABELS = {field: label for label, field in _PLAIN.items()} | {"hires_strength": "Denoising strength", "init": "", "mask": ""}
_NUMBERS = {
    **dict.fromkeys(("steps", "seed", "variation_seed", "mask_padding", "hires_steps", "clip_skip"), int),
    **dict.fromkeys(("guidance", "image_guidance", "strength", "variation", "mask_blur", "hires", "refiner_start"), float),
}
_FLOAT = r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,3})?"
_JSON = json.JSONDecoder()


def compose(record: Record) -> str:
    """Return the web UI's text for `record`."""
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
    """Convert the values of `extra` that the web UI writes differently."""
    found = {name: value for name, value in extra.items() if name not in {"fit", "memory", "provider"}}  # the record has them
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
    """Parse the web UI's `text` into values under the names of `Record`'s fields; other values are in "extra".

    Names of samplers and schedules stay unchanged; `samplers.find_sampler` and `schedules.find_schedule` accept them.
    """
    lines = text[:MAX_TEXT].strip().split("\n")
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
    """`Key: value, Key: "quoted, value", Key: {JSON}`. Parts without a key are left out. One pass."""
    found: dict[str, str] = {}
    place = 0
    while place < len(line):
        comma = line.find(",", place)
        colon = line.find(":", place, comma if comma >= 0 else len(line))
        key = line[place:colon].strip()
        if colon < 0 or not _KEY.fullmatch(key):
            place = len(line) if comma < 0 else comma + 1
            continue
        place = colon + 1
        while line[place : place + 1] == " ":
            place += 1
        value: object = None
        if line[place : place + 1] in {'"', "{", "["}:
            try:
                value, end = _JSON.raw_decode(line[place : place + MAX_VALUE])
                place += end
            except (ValueError, RecursionError):
                value = None
        comma = line.find(",", place)
        comma = len(line) if comma < 0 else comma
        if value is None:
            value = line[place:comma].strip()
        found[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        place = comma + 1
    return found


def _quoted(value: object) -> str:
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n\r"]', text) or text != text.strip() else text
