"""What a U-Net is told beside the noisy sample: the prompt, the size, and the picture that it works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from ..models.bundle import Bundle
from ..models.errors import RequestError
from ..models.families import FAMILIES, Family
from ..models.manifest import Manifest
from . import denoise, guidance, inpaint, pictures, speed, text
from .components import Components, Handle
from .denoise import Array, Conditioning, Denoise, Feeds, Weighted
from .guidance import Guidance
from .inpaint import Scene
from .job import Job, Pass
from .request import Request
from .tokenizer import open_tokenizer

PICTURE_SCALE = 1.5
"""`Request.image_guidance` where nobody says."""


def encoders(bundle: Bundle, components: Components) -> Iterator[text.TextEncoder]:
    """The text encoders of `bundle`, in the order in which their states are joined."""
    several = len(bundle.manifest.tokenizers) > 1
    for name, description in bundle.manifest.tokenizers.items():
        encoder = name.replace("tokenizer", "text_encoder")
        tokenizer = open_tokenizer(bundle.path(description.folder), description)
        is_second = encoder == "text_encoder_2"
        yield text.TextEncoder(components.get(encoder), tokenizer, penultimate=several or is_second, pooled=is_second)


def encode(job: Job, one: Pass, family: Family, encoders: Sequence[text.TextEncoder], notes: list[str]) -> text.Encoded:
    """The prompts of `job` for a U-Net of `family` on the pass `one`; what was cut is appended to `notes`."""
    request = job.request
    encoded = text.encode(
        request.prompt,
        encoders,
        one.sigmas,
        negative=request.negative if job.guidance != 1 else None,
        clip_skip=request.clip_skip,
        sizes=_sizes(request, one, family),
        zero_empty_negative=family.architecture == "sdxl" and family.task != "refine",
    )
    notes += [note for note in encoded.notes if note not in notes]
    return encoded


def _sizes(request: Request, one: Pass, family: Family) -> text.Sizes | None:
    """What SDXL wants to know about the picture."""
    if family.architecture != "sdxl":
        return None
    width, height = request.original_size or (one.width, one.height)
    left, top = request.crop
    aesthetic = (6.0, 2.5) if family.task == "refine" else None
    return text.Sizes(original=(height, width), target=(one.height, one.width), crop=(top, left), aesthetic=aesthetic)


def denoiser(job: Job, one: Pass, manifest: Manifest, unet: Handle, encoded: text.Encoded, seen: Feeds) -> Denoise:
    """The U-Net of the model `manifest` with everything that prompt, guidance, size and picture (`seen`) add to it."""
    noise, family, grain = manifest.noise, FAMILIES[manifest.family], manifest.latent.downscale
    savings = speed.TABLE[speed.find(job.request.speed)]
    predict, held = speed.saving(savings, unet, noise, one.sigmas, (one.height // grain, one.width // grain))
    wanted = Guidance(scale=job.guidance, rescale=job.request.rescale, interval=job.interval, batched=held is None and _batches(unet))
    extra = dict(seen)
    if "timestep_cond" in unet.inputs:  # distilled to be guided by a number: no negative prompt, one call a step
        width = unet.inputs["timestep_cond"].shape[-1]
        assert isinstance(width, int)
        extra["timestep_cond"] = denoise.guidance_embedding(job.guidance, width)
        return guidance.guided(predict, noise.prediction, _adding(encoded.positive, extra), None, Guidance(scale=1.0))
    sizes = _sizes(job.request, one, family)
    if sizes is not None and family.task != "refine":  # the text was encoded with the sizes of the first pass
        extra["time_ids"] = sizes.time_ids()
    positive = _adding(encoded.positive, extra)
    negative = None if encoded.negative is None else _adding(encoded.negative, extra)
    if family.task == "instruct" and negative is not None:
        scale = PICTURE_SCALE if job.request.image_guidance is None else job.request.image_guidance
        return guidance.guided_by_picture(predict, noise.prediction, positive, negative, replace(wanted, picture_scale=scale))
    return guidance.guided(predict, noise.prediction, positive, negative, wanted, held)


def _batches(unet: Handle) -> bool:
    """Whether one call for a prompt and its negative pays: on a GPU with memory to spare. On a CPU it saves no time."""
    return unet.components.provider.device is not None and unet.components.plan == "resident"


def _adding(conditioning: Conditioning, extra: Feeds) -> Conditioning:
    """`conditioning` with the same feeds added at every sigma."""
    if not extra:
        return conditioning
    return lambda sigma: [Weighted(weight, {**feeds, **extra}) for weight, feeds in conditioning(sigma)]


def picture_channels(manifest: Manifest, scene: Scene | None, start: Array | None, encode: Callable[[Array], Array]) -> dict[str, Array]:
    """What U-Nets that work on a picture see of `scene`: the mask and the masked picture, or the picture itself.

    `start` are the latents of the picture, and `encode` makes such.

    Raises:
        RequestError: there is no picture.
    """
    task = FAMILIES[manifest.family].task
    if task not in {"inpaint", "instruct"}:
        return {}
    if start is None or scene is None:
        raise RequestError(f"{manifest.source.name} works on a picture: give one with init (--init FILE)")
    if task == "instruct":
        return {denoise.EXTRA_CHANNELS: start / np.float32(manifest.latent.scaling)}
    mask = inpaint.pixel_mask(scene.mask or Image.new("L", scene.picture.size, 255))
    return {denoise.EXTRA_CHANNELS: inpaint.channels(mask, encode(pictures.to_array(scene.picture) * (mask < 0.5)))}
