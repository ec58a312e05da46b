"""AUTOMATIC1111's API, /sdapi/v1, as its clients use it: SillyTavern, Open WebUI, plug-ins for Photoshop, webuiapi."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ... import __version__
from ...runtime.images import image_io
from ...runtime.request import MAX_SIDE
from ..jobs.records import Job, Refused
from ..jobs.service import Service
from . import a1111_lists as lists
from . import masks, metadata_in
from .a1111_fields import Kind, Translated, translate
from .errors import json_response
from .images_in import bytes_of
from .waiting import decoding, ended, in_thread, json_object, service_of

PREFIX = "/sdapi/v1"
_LISTS: dict[str, Callable[[Service], Any]] = {
    "samplers": lists.samplers,
    "schedulers": lists.schedulers,
    "upscalers": lists.upscalers,
    "latent-upscale-modes": lists.latent_modes,
    "sd-models": lists.models,
    "sd-vae": lists.nothing,
    "embeddings": lists.embeddings,
    "loras": lists.loras,
    "scripts": lists.scripts,
    "script-info": lists.nothing,
    "memory": lists.memory,
    "cmd-flags": lists.flags,
    "hypernetworks": lists.nothing,
    "face-restorers": lists.nothing,
    "realesrgan-models": lists.nothing,
    "prompt-styles": lists.nothing,
    "extensions": lists.nothing,
    "options": lists.options,
}
_NO_EFFECT = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings", "unload-checkpoint", "reload-checkpoint")
"""What would read folders again: they are read at every request; or free memory: the next job would take it again."""


async def generate(request: Request, kind: Kind) -> Response:
    """Generate and answer with the images."""
    service = service_of(request)
    body = await json_object(request)

    def submit() -> tuple[Translated, Job]:
        wanted = translate(body, kind)
        model = wanted.model or lists.chosen(service)
        if wanted.lasting and wanted.model:
            _choose(service, wanted.model)
        return wanted, service.submit(wanted.asked, model, wanted.options, client=_client(request))

    wanted, job = await (decoding if kind == "img2img" else in_thread)(submit)
    try:
        job = await ended(request, service, job)
    except Refused:
        job = service.queue.job(job.id)
        if job.status != "cancelled":  # interrupted: A1111 answers with what there is
            raise
    return await in_thread(_answer, service, job, wanted, body)


def _client(request: Request) -> str:
    """Whose turn it is: clients of this API have no name, so the address and the program stand for one."""
    host = request.client.host if request.client else ""
    return f"a1111 {host} {request.headers.get('user-agent', '')[:60]}"


def _answer(service: Service, job: Job, wanted: Translated, body: Mapping[str, Any]) -> Response:
    stored = service.store.images_of(job.id)
    files = [service.gallery.path(one).read_bytes() for one in stored]
    info = _info(service, job, wanted, [metadata_in.read(data).text or "" for data in files])
    if not wanted.keep:
        service.forget(job)
    images = [base64.b64encode(data).decode() for data in files] if wanted.send else []
    parameters = {name: value for name, value in body.items() if name not in {"init_images", "mask"}}
    return json_response({"images": images, "parameters": parameters, "info": msgspec.json.encode(info).decode()})


def _info(service: Service, job: Job, wanted: Translated, texts: list[str]) -> dict[str, Any]:
    """A1111's description of what was made."""
    offer = service.catalog.find(job.model)
    decided = job.resolved or {}
    stored = service.store.images_of(job.id)
    seeds = [one.image.seed for one in stored]
    variations = [one.settings.get("variation_seed", -1) for one in stored]
    prompt, negative = job.prompt, str(job.request.get("negative", ""))
    sampler = next((one["name"] for one in lists.samplers(service) if one["aliases"][0] == decided.get("sampler")), None)
    count = len(stored)
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": seeds[0] if seeds else -1,
        "all_seeds": seeds,
        "subseed": variations[0] if variations else -1,
        "all_subseeds": variations,
        "subseed_strength": job.request.get("variation", 0),
        "width": decided.get("width"),
        "height": decided.get("height"),
        "sampler_name": sampler,
        "cfg_scale": decided.get("guidance"),
        "steps": decided.get("steps"),
        "batch_size": count,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": offer.name,
        "sd_model_hash": offer.hash[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": decided.get("strength", decided.get("hires_strength")),
        "extra_generation_params": {"Schedule type": decided.get("schedule")},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": str(int(job.created)),
        "clip_skip": int(job.request.get("clip_skip", 0)) + 1,
        "is_using_inpainting_conditioning": False,
        "version": f"Diffusette {__version__}",
        "ignored": list(wanted.ignored),
        "notes": list(job.notes),
        "interrupted": job.status == "cancelled",
    }


def _choose(service: Service, name: str) -> None:
    offer = service.catalog.find(name)
    service.store.put_settings(lists.OWNER, {lists.SELECTED: offer.id})


async def set_options(request: Request) -> Response:
    """Take the options, or the whole object that GET gave; choosing a model opens it by way of the queue. The answer is null."""
    service = service_of(request)
    body = await json_object(request)
    name = body.get(lists.SELECTED)
    if name is not None:
        if not isinstance(name, str):
            raise Refused("invalid_request", f"{lists.SELECTED}: expected the title of a model", lists.SELECTED)
        offer = service.catalog.find(name)
        _choose(service, name)
        if service.worker.resident != offer.id:
            service.open_model(offer, _client(request))
    return json_response(None)


async def progress(request: Request) -> Response:
    """How far the running job is, with a preview."""
    service = service_of(request)
    found = lists.progress(service)
    entry = service.queue.running
    if request.query_params.get("skip_current_image", "").lower() != "true":
        service.worker.want_previews()
        if entry is not None and entry.preview is not None:
            found["current_image"] = base64.b64encode(entry.preview[1]).decode()
    return json_response(found)


async def interrupt(request: Request) -> Response:
    """Cancel the running job."""
    service_of(request).queue.stop_running()
    return json_response({})


async def skip(request: Request) -> Response:
    """Give up the current image of the running job."""
    service_of(request).queue.skip()
    return json_response({})


async def png_info(request: Request) -> Response:
    """The settings in an image."""
    body = await json_object(request)

    def read() -> dict[str, Any]:
        found = metadata_in.read(bytes_of(body.get("image"), "image"))
        items = {"parameters": found.text} if found.text else {}
        return {"info": found.text or "", "items": items, "parameters": lists.labelled(found)}

    return json_response(await in_thread(read))


async def extra_single_image(request: Request) -> Response:
    """Resize an image."""
    body = await json_object(request)
    data = await decoding(lambda: masks.png(_resized(body)))
    return json_response({"html_info": "", "image": base64.b64encode(data).decode()})


def _resized(body: Mapping[str, Any]) -> Image.Image:
    for name in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"):
        if body.get(name):
            raise Refused("unsupported", f"{name}: not supported; leave it out", name)
    if body.get("upscaler_1", "None") not in ("None", "Lanczos"):
        raise Refused("unsupported", f"upscaler_1: {str(body['upscaler_1'])[:60]!r}, expected None or Lanczos", "upscaler_1")
    image = image_io.read(bytes_of(body.get("image"), "image"))
    if body.get("resize_mode", 0) == 0:
        factor = _number(body, "upscaling_resize", 2.0, 0.05, 8.0)
        width, height = round(image.width * factor), round(image.height * factor)
    else:
        width, height = (int(_number(body, name, 512, 1, MAX_SIDE)) for name in ("upscaling_resize_w", "upscaling_resize_h"))
    if max(width, height) > MAX_SIDE:
        raise Refused("invalid_request", f"upscaling_resize: {width} × {height}, expected at most {MAX_SIDE} a side", "upscaling_resize")
    fit: image_io.How = "crop" if body.get("resize_mode", 0) == 1 and body.get("upscaling_crop", True) else "stretch"
    return image_io.fit(image, max(1, width), max(1, height), fit)


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Refused("invalid_request", f"{name}: expected a number from {low:g} to {high:g}", name)
    return value


async def _listed(request: Request, function: Callable[[Service], Any]) -> Response:
    return json_response(function(service_of(request)))


async def _done(_request: Request) -> Response:
    return json_response(None)


async def _pong(_request: Request) -> Response:
    return json_response({})


def routes() -> list[Route]:
    """The routes of this API."""
    found = [Route(f"{PREFIX}/{name}", partial(_listed, function=function), methods=["GET"]) for name, function in _LISTS.items()]
    found += [Route(f"{PREFIX}/{kind}", partial(generate, kind=kind), methods=["POST"]) for kind in ("txt2img", "img2img")]
    found += [Route(f"{PREFIX}/{name}", _done, methods=["POST"]) for name in _NO_EFFECT]
    return [
        *found,
        Route(f"{PREFIX}/options", set_options, methods=["POST"]),
        Route(f"{PREFIX}/progress", progress, methods=["GET"]),
        Route(f"{PREFIX}/interrupt", interrupt, methods=["POST"]),
        Route(f"{PREFIX}/skip", skip, methods=["POST"]),
        Route(f"{PREFIX}/png-info", png_info, methods=["POST"]),
        Route(f"{PREFIX}/extra-single-image", extra_single_image, methods=["POST"]),
        Route("/config", partial(_listed, function=lists.config), methods=["GET"]),
        Route("/internal/ping", _pong, methods=["GET"]),
    ]
