"""Everything that a U-Net receives beside the noisy sample: the prompt, size conditioning, and the image that it edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from msgspec import UNSET
from PIL import Image

from ..models.bundle import Bundle
from ..models.errors import RequestError
from ..models.families import FAMILIES, Family
from ..models.manifest import Manifest
from . import unet_graphs
from .engine.components import Handle, Runner
from .images import image_io, inpaint, vae
from .images.inpaint import Scene
from .prompt.encode import Encoded, TextEncoder
from .prompt.encode import encode as encode_prompt
from .prompt.tokenizer import open_tokenizer
from .request import Request, is_default
from .resolve import Pass, ResolvedRequest
from .sampling import denoise, guidance, speed
from .sampling.guidance import Guidance
from .types import EXTRA_CHANNELS, Array, Conditioning, Denoise, Feeds, Weighted

IMAGE_GUIDANCE = 1.5
"""The default of `Request.image_guidance`."""
AESTHETIC_SCORES = (6.0, 2.5)
"""Scores that the SDXL refiner receives for a prompt and its negative: diffusers' defaults."""


def text_encoders(bundle: Bundle, components: Runner) -> Iterator[TextEncoder]:
    """The text encoders of `bundle`, in the order in which their states are joined."""
    several = len(bundle.manifest.tokenizers) > 1
    for name, description in bundle.manifest.tokenizers.items():
        encoder = name.replace("tokenizer", "text_encoder")
        tokenizer = open_tokenizer(bundle.path(description.folder), description)
        is_second = encoder == "text_encoder_2"
        yield TextEncoder(components.get(encoder), tokenizer, penultimate=several or is_second, pooled=is_second)


def encode(request: ResolvedRequest, one: Pass, manifest: Manifest, encoders: Sequence[TextEncoder]) -> Encoded:
    """The prompts of `request`, encoded for the U-Net of `manifest` in the pass `one`."""
    family = FAMILIES[manifest.family]
    zero = (
        family.architecture == "sdxl" and family.task != "refine" if manifest.zero_empty_negative is UNSET else manifest.zero_empty_negative
    )
    return encode_prompt(
        request.prompt,
        encoders,
        one.sigmas,
        negative=request.negative if request.guidance > 1 else None,  # as in diffusers, 1 and less turn guidance off
        clip_skip=request.clip_skip,
        zero_empty_negative=zero,
    )


@dataclass(frozen=True)
class SizeConditioning:
    """What SDXL receives about an image's size, in pixels, heights first (Podell et al. 2023, arXiv:2307.01952, section 2.2)."""

    original: tuple[int, int]
    target: tuple[int, int]
    crop: tuple[int, int] = (0, 0)
    aesthetic: tuple[float, float] | None = None
    """Refiner: aesthetic scores of the prompt and its negative, in place of `target`."""

    def time_ids(self, *, negative: bool = False) -> Array:
        """(1, 6), or (1, 5) for the refiner; read-only, so that a session may keep it on its device."""
        last = self.target if self.aesthetic is None else (self.aesthetic[int(negative)],)
        found = np.array([[*self.original, *self.crop, *last]], np.float32)
        found.flags.writeable = False
        return found


def size_conditioning(request: Request, one: Pass, family: Family) -> SizeConditioning | None:
    """The size conditioning of the pass `one`; None unless the family is SDXL's."""
    if family.architecture != "sdxl":
        return None
    width, height = request.original_size or (one.width, one.height)
    left, top = request.crop
    aesthetic = AESTHETIC_SCORES if family.task == "refine" else None
    return SizeConditioning(original=(height, width), target=(one.height, one.width), crop=(top, left), aesthetic=aesthetic)


def denoiser(request: ResolvedRequest, one: Pass, manifest: Manifest, unet: Handle, encoded: Encoded, channels: Feeds) -> Denoise:
    """The U-Net of the model `manifest` as a `Denoise`, with prompts, guidance, size conditioning and image `channels`."""
    noise, family, grain = manifest.noise, FAMILIES[manifest.family], manifest.latent.downscale
    savings = speed.TABLE[speed.find_speed(request.speed)]
    predict, held = unet_graphs.saving(savings, unet, noise, one.sigmas, (one.height // grain, one.width // grain))
    extra = dict(channels)
    if "timestep_cond" in unet.inputs:  # distilled guidance is a number: no negative prompt, one call per step
        width = unet.inputs["timestep_cond"].shape[-1]
        assert isinstance(width, int)
        extra["timestep_cond"] = denoise.guidance_embedding(request.guidance, width)
        return guidance.guided(predict, noise.prediction, _adding(encoded.positive, extra), None, Guidance(scale=1.0))
    sizes = size_conditioning(request, one, family)
    positive = _adding(encoded.positive, extra if sizes is None else {**extra, "time_ids": sizes.time_ids()})
    negative = encoded.negative
    if negative is not None:
        negative = _adding(negative, extra if sizes is None else {**extra, "time_ids": sizes.time_ids(negative=True)})
    options = Guidance(
        scale=request.guidance, rescale=request.rescale, interval=request.guided_sigmas, batched=held is None and _batches(unet)
    )
    if family.task == "instruct" and negative is not None:
        scale = IMAGE_GUIDANCE if request.image_guidance is None else request.image_guidance
        return guidance.guided_by_image(predict, noise.prediction, positive, negative, replace(options, image_scale=scale))
    return guidance.guided(predict, noise.prediction, positive, negative, options, held)


def unused(request: ResolvedRequest, unet: Handle) -> list[str]:
    """Return notes on what was asked for and has no effect on a U-Net with distilled guidance."""
    if "timestep_cond" not in unet.inputs or request.guidance <= 1:  # at most 1: said of every model
        return []
    names = [name for name in ("negative", "rescale", "guidance_interval") if not is_default(request, name)]
    return [f"{name}: has no effect, since guidance is distilled into this model" for name in names]


def _batches(unet: Handle) -> bool:
    """Whether one call serves a prompt and its negative: on a GPU with memory to spare. On a CPU it saves no time."""
    return unet.components.provider.device is not None and unet.components.plan == "resident"


def _adding(conditioning: Conditioning, extra: Feeds) -> Conditioning:
    """`conditioning` with the same feeds added at every sigma."""
    if not extra:
        return conditioning
    return lambda sigma: [Weighted(weight, {**feeds, **extra}) for weight, feeds in conditioning(sigma)]


def image_channels(manifest: Manifest, scene: Scene | None, start: Array | None, encode: Callable[[Array], Array]) -> dict[str, Array]:
    """The channels that an inpainting or pix2pix U-Net receives: the mask and the masked image, or the image itself.

    `start` are the latents of the image; `encode` turns pixels into latents.

    Raises:
        RequestError: the model needs an image, and the request has none.
    """
    task = FAMILIES[manifest.family].task
    if task not in {"inpaint", "instruct"}:
        return {}
    if start is None or scene is None:
        raise RequestError(f"{manifest.source.name} edits an image, and the request has none; add init (--init FILE)")
    if task == "instruct":
        return {EXTRA_CHANNELS: vae.unscaled(start, manifest.latent)}
    mask = inpaint.pixel_mask(scene.mask or Image.new("L", scene.picture.size, 255))
    return {EXTRA_CHANNELS: inpaint.channels(mask, encode(image_io.to_array(scene.picture) * (mask < 0.5)))}


def scene_of(request: ResolvedRequest, width: int, height: int) -> Scene | None:
    """The init image and mask of `request` at `width` × `height`; None for text to image. Raises what `inpaint.scene` raises."""
    if request.init is None:
        return None
    padding = request.mask_padding if request.only_masked else None
    return inpaint.scene(request.init, request.mask, width, height, blur=request.mask_blur, padding=padding, how=request.fit)
