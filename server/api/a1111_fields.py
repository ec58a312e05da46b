"""AUTOMATIC1111's request fields as ours: what can be done, what is ignored and said, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from ...runtime.names import key_of
from ...runtime.sampling.samplers import SAMPLERS, find_sampler
from ..jobs.records import Options, Refused
from ..jobs.requests import WORD, Asked, random_seed
from . import masks
from .images_in import bytes_of

Kind = Literal["txt2img", "img2img"]
MAX_NUMBER = 1_000_000
"""Beyond any number that means something, and below those that arithmetic cannot take."""
FITS = {0: "stretch", 1: "crop", 2: "pad"}
_PLAIN = {
    "negative_prompt": "negative",
    "width": "width",
    "height": "height",
    "steps": "steps",
    "cfg_scale": "guidance",
}
_USED = {
    *_PLAIN,
    *("prompt", "seed", "subseed", "subseed_strength", "sampler_name", "sampler_index", "scheduler", "batch_size", "n_iter"),
    *("enable_hr", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "denoising_strength"),
    *("init_images", "mask", "mask_blur", "mask_blur_x", "mask_blur_y", "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding"),
    *("inpainting_mask_invert", "resize_mode", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "clip_skip"),
    *("override_settings", "override_settings_restore_afterwards", "send_images", "save_images", "do_not_save_samples"),
}
"""Fields that have an effect."""
_HARMLESS = {
    "image_cfg_scale",
    "do_not_save_grid",
    "script_args",
    "firstphase_width",
    "firstphase_height",
    "include_init_images",
    "force_task_id",
}
"""Fields that mean nothing here, whatever their value."""
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "restore_faces": (None, False),
    "tiling": (None, False),
    "styles": (None, []),
    "script_name": (None, "", "None"),
    "refiner_checkpoint": (None, "", "None"),
    "refiner_switch_at": (None, 0, 1),
    "hr_checkpoint_name": (None, "", "Use same checkpoint"),
    "hr_sampler_name": (None, "", "Use same sampler"),
    "hr_scheduler": (None, "", "Use same scheduler"),
    "hr_prompt": (None, ""),
    "hr_negative_prompt": (None, ""),
    "seed_resize_from_w": (None, 0, -1),
    "seed_resize_from_h": (None, 0, -1),
    "latent_mask": (None, ""),
    "initial_noise_multiplier": (None, 0, 1),
}
"""Fields of features that do not exist here → the values that leave the feature off; others are refused, never silently dropped."""
_OPTIONS = {"eta": (None, 0, 1), "s_churn": (None, 0), "s_tmin": (None, 0), "s_tmax": (None, 0), "s_noise": (None, 1)}
"""Options of the sampler → the values that clients send without meaning anything."""


class Translated(NamedTuple):
    """An A1111 request."""

    asked: Asked
    model: str | None
    options: Options
    ignored: tuple[str, ...]
    """Fields and settings without effect."""
    send: bool
    """The answer has the images."""
    keep: bool
    """The gallery has them afterwards."""
    lasting: bool
    """The settings stay afterwards."""


@dataclass(frozen=True)
class _Given:
    """The body, with checked access."""

    body: Mapping[str, Any]

    def number(self, name: str, default: float) -> float:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_NUMBER:
            raise Refused("invalid_request", f"{name}: expected a number of at most {MAX_NUMBER:,}", name)
        return value

    def text(self, name: str) -> str:
        value = self.body.get(name)
        if value is not None and not isinstance(value, str):
            raise Refused("invalid_request", f"{name}: expected text", name)
        if name != "prompt" and value is not None and len(value) > WORD:
            raise Refused("invalid_request", f"{name}: {len(value):,} characters, expected at most {WORD}", name)
        return value or ""


def translate(body: Mapping[str, Any], kind: Kind) -> Translated:
    """The request that a body of /txt2img or /img2img asks for.

    Raises:
        Refused: a feature that does not exist here (422), an image that is not data (400), or a wrong type.
        RequestError: a value that the runtime refuses.
    """
    given = _Given(body)
    _refuse_unsupported(body)
    overrides: object = body.get("override_settings") or {}
    if not isinstance(overrides, dict):
        raise Refused("invalid_request", "override_settings: expected an object", "override_settings")
    settings = cast("dict[str, Any]", overrides)
    model: object = settings.get("sd_model_checkpoint")
    if model is not None and not isinstance(model, str):
        raise Refused("invalid_request", "sd_model_checkpoint: expected the title of a model", "override_settings")
    fields: dict[str, Any] = {ours: body[theirs] for theirs, ours in _PLAIN.items() if body.get(theirs) is not None}
    fields |= {
        "prompt": given.text("prompt"),
        "seed": random_seed(body.get("seed")),
        "count": int(given.number("batch_size", 1) * given.number("n_iter", 1)),
        "clip_skip": _clip_skip(body.get("clip_skip"), settings),
    }
    if given.number("subseed_strength", 0) > 0:
        fields |= {"variation": given.number("subseed_strength", 0), "variation_seed": random_seed(body.get("subseed"))}
    fields |= _sampler(given)
    images: dict[str, bytes] = {}
    if kind == "img2img":
        images = _image_to_image(given, fields)
    elif body.get("enable_hr"):
        fields |= _hires(given)
    ignored = [name for name in body if name not in _USED | _HARMLESS | _UNSUPPORTED.keys() | {"alwayson_scripts"}]
    ignored += _ignored_options(given, fields)
    ignored += [f"override_settings.{name}" for name in settings if name not in _SETTINGS]
    return Translated(
        Asked({name: value for name, value in fields.items() if value is not None}, images, dict.fromkeys(images, True)),
        model or None,
        Options(seed=0, variation_seed=0, waits=True, format=_FORMATS.get(str(settings.get("samples_format", "png")).lower(), "PNG")),
        tuple(sorted(ignored)),
        send=body.get("send_images") is not False,
        keep=not body.get("do_not_save_samples"),
        lasting=body.get("override_settings_restore_afterwards") is False,
    )


_SETTINGS = {"sd_model_checkpoint", "CLIP_stop_at_last_layers", "samples_format", "sd_vae"}
_FORMATS: dict[str, Literal["PNG", "JPEG", "WEBP"]] = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    for name, off in _UNSUPPORTED.items():
        value = body.get(name)
        if value not in off:
            allowed = " or ".join(json.dumps(one) for one in off if one is not None)
            raise Refused("unsupported", f"{name}: this server cannot do that; leave the field out, or send {allowed}", name)
    overrides = body.get("override_settings")
    vae = cast("dict[str, Any]", overrides).get("sd_vae") if isinstance(overrides, dict) else None
    if vae not in (None, "", "Automatic", "None"):
        raise Refused("unsupported", f"sd_vae: {str(vae)[:60]!r} is not here; a bundle has its own, so use Automatic", "override_settings")
    scripts: object = body.get("alwayson_scripts") or {}
    if not isinstance(scripts, dict):
        raise Refused("invalid_request", "alwayson_scripts: expected an object", "alwayson_scripts")
    for name, script in cast("dict[str, Any]", scripts).items():
        arguments = cast("dict[str, Any]", script).get("args") if isinstance(script, dict) else script
        if not _is_off(arguments):
            raise Refused("unsupported", f"alwayson_scripts: {name[:60]!r} is not supported; leave it out", "alwayson_scripts")


def _is_off(arguments: object) -> bool:
    """Whether a script was sent with nothing turned on."""
    if not isinstance(arguments, list):
        return not arguments
    given = cast("list[Any]", arguments)
    if given and given[0] is False:
        return True
    return all(one is False or (isinstance(one, dict) and cast("dict[str, Any]", one).get("enabled") is False) for one in given)


def _clip_skip(given: object, settings: Mapping[str, Any]) -> int:
    """A1111 counts layers from 1."""
    value = settings.get("CLIP_stop_at_last_layers") or given or 1
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise Refused("invalid_request", "clip_skip: expected a whole number", "clip_skip")
    return max(0, int(value) - 1)


def _sampler(given: _Given) -> dict[str, Any]:
    """Sampler and schedule; "Automatic" is the sampler's own."""
    name = given.text("sampler_name") or given.text("sampler_index")
    schedule = given.text("scheduler")
    found: dict[str, Any] = {"sampler": name or None}
    if key_of(schedule) not in {"", "automatic"}:
        found["schedule"] = schedule
    elif name:
        found["schedule"] = find_sampler(name).schedule
    if name:
        sampler = find_sampler(name)
        found["sampler"] = sampler.name
        options = {one: given.body[one] for one, off in _OPTIONS.items() if one in sampler.options and given.body.get(one) not in off}
        if options:
            found["sampler_options"] = options
    return found


def _ignored_options(given: _Given, fields: Mapping[str, Any]) -> list[str]:
    """Options of samplers that the chosen one does not have."""
    known = SAMPLERS[fields["sampler"]].options if fields.get("sampler") else ()
    return [name for name, off in _OPTIONS.items() if name not in known and given.body.get(name) not in off]


def _hires(given: _Given) -> dict[str, Any]:
    scale = given.number("hr_scale", 2.0)
    wide, high = given.number("hr_resize_x", 0), given.number("hr_resize_y", 0)
    width, height = given.number("width", 0), given.number("height", 0)
    if wide or high:
        if not width or not height:
            raise Refused("invalid_request", "hr_resize_x: give width and height as well, or hr_scale", "hr_resize_x")
        scale = (wide or high * width / height) / width
        if wide and high and abs(high / height - scale) > 0.01:
            raise Refused("unsupported", "hr_resize_x, hr_resize_y: another shape than width and height; use hr_scale", "hr_resize_x")
    found: dict[str, Any] = {"hires": scale, "hires_strength": given.body.get("denoising_strength", 0.75)}
    if given.text("hr_upscaler") not in {"", "None"}:
        found["hires_upscaler"] = given.text("hr_upscaler")
    if given.number("hr_second_pass_steps", 0):
        found["hires_steps"] = int(given.number("hr_second_pass_steps", 0))
    return found


def _image_to_image(given: _Given, fields: dict[str, Any]) -> dict[str, bytes]:
    """Fill in `fields`, and return the images."""
    found: object = given.body.get("init_images")
    sources = cast("list[object]", found) if isinstance(found, list) else []
    if not sources:
        raise Refused("invalid_request", "init_images: expected a list with one image as base64", "init_images")
    if len(sources) > 1:
        raise Refused("unsupported", "init_images: one image at a time; send one request for each", "init_images")
    mode = int(given.number("resize_mode", 0))
    if mode not in FITS:
        raise Refused("unsupported", f"resize_mode: {mode}, expected 0 (stretch), 1 (crop) or 2 (pad)", "resize_mode")
    fields |= {"fit": FITS[mode], "strength": given.number("denoising_strength", 0.75)}
    images = {"init": bytes_of(sources[0], "init_images")}
    if given.body.get("mask"):
        images["mask"] = bytes_of(given.body["mask"], "mask")
        _inpaint(given, fields, images)
    return images


def _inpaint(given: _Given, fields: dict[str, Any], images: dict[str, bytes]) -> None:
    whole = given.number("mask_blur", 4)
    across, down = given.number("mask_blur_x", whole), given.number("mask_blur_y", whole)
    if across != down:
        raise Refused("unsupported", "mask_blur_x, mask_blur_y: expected the same value", "mask_blur_x")
    fields["mask_blur"] = float(across)
    if given.body.get("inpaint_full_res", True):
        fields |= {"only_masked": True, "mask_padding": int(given.number("inpaint_full_res_padding", 0))}
    if given.body.get("inpainting_mask_invert"):
        images["mask"] = masks.inverted(images["mask"])
    content = int(given.number("inpainting_fill", 0))
    if content == 0:
        images["init"] = masks.filled(images["init"], images["mask"])
    elif content != 1:
        raise Refused("unsupported", f"inpainting_fill: {content}, expected 0 (fill) or 1 (original)", "inpainting_fill")
