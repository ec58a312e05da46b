"""Prompt in, picture out: the flow of the runtime in one file.

`load` opens a bundle, `Pipeline.steps` is the loop: it yields after each step and at the end of each picture, so that
progress, previews and cancelling belong to the caller. `Pipeline.generate` runs it to the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, Unpack

import numpy as np
from PIL import Image

from ..models import manifest as manifests
from ..models.bundle import DEMO, Bundle, open_bundle
from ..models.errors import NumericalError, RequestError, ResourceError
from ..models.families import FAMILIES, Family
from ..models.manifest import Manifest
from . import adapters, denoise, inpaint, machine, pictures, randomness, samplers, text, vae
from .adapters import Adapted
from .components import Components, Handle, choose_plan
from .denoise import Array, Conditioning, Denoise, Feeds, Guidance, Weighted
from .parameters import Record
from .providers import resolve
from .request import Fields, Job, Request, settle
from .session import SessionOptions
from .tokenizer import open_tokenizer


@dataclass(frozen=True)
class Step:
    """One step of one picture is done."""

    picture: int
    """Index of the picture, from 0."""
    number: int
    """Steps done, from 1."""
    total: int
    latents: Array
    """(1, channels, height, width); `Pipeline.preview` makes a picture of it."""


@dataclass(frozen=True)
class Picture:
    """One picture is done."""

    image: Image.Image
    seed: int
    record: Record
    """What it takes to draw it again; goes into the file's metadata."""


@dataclass(frozen=True)
class Result:
    """What `generate` gives."""

    pictures: tuple[Picture, ...]
    provider: str
    """The provider that ran."""
    plan: str
    """The memory plan that was used."""
    notes: tuple[str, ...]
    """What the user should know: what was cut from the prompt, what `auto` passed over."""
    timings: dict[str, float]
    """Seconds by component, and `total`."""

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return tuple(picture.image for picture in self.pictures)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(picture.seed for picture in self.pictures)

    @property
    def metadata(self) -> tuple[Record, ...]:
        return tuple(picture.record for picture in self.pictures)


@dataclass
class Pipeline:
    """A model that is ready to draw. Threads may share it. Close it, or use `with`, to give its memory back."""

    bundle: Bundle
    components: Components
    notes: tuple[str, ...] = ()
    encoders: tuple[text.TextEncoder, ...] = field(default=())

    def __post_init__(self) -> None:
        self.encoders = tuple(_encoders(self.bundle, self.components))

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory of all sessions back. The pipeline can still draw: they open again."""
        self.components.close()

    def cancel(self) -> None:
        """Stop the model call that runs now, from any thread; whoever waits for it gets `session.Cancelled`."""
        self.components.cancel()

    def generate(self, prompt: str | Request, **fields: Unpack[Fields]) -> Result:
        """Draw `prompt`; `fields` are those of `Request`.

        Raises:
            RequestError: what was asked for cannot be drawn.
            ResourceError: memory does not suffice.
            NumericalError: NaN or Inf came out.
        """
        request = Request(prompt, **fields) if isinstance(prompt, str) else prompt
        return self.watch(request, lambda _event: None)

    def watch(self, request: Request, seen: Callable[[Step | Picture], None]) -> Result:
        """`generate`, with `seen` called after each step and with each picture as soon as it is done."""
        started, before = time.perf_counter(), dict(self.components.seconds)
        notes: list[str] = []
        drawn: list[Picture] = []
        for event in self.steps(request, notes):
            seen(event)
            if isinstance(event, Picture):
                drawn.append(event)
        timings = {name: seconds - before.get(name, 0.0) for name, seconds in self.components.seconds.items()}
        return Result(
            pictures=tuple(drawn),
            provider=self.components.provider.name,
            plan=self.components.plan,
            notes=(*self.notes, *self.components.notes(), *notes),
            timings={**timings, "total": time.perf_counter() - started},
        )

    def steps(self, request: Request, notes: list[str] | None = None) -> Iterator[Step | Picture]:
        """Draw `request` step by step; after the last `Step` of a picture comes its `Picture`.

        Stop iterating to cancel. What the user should know is appended to `notes`.
        """
        notes = [] if notes is None else notes
        job = settle(request, self.manifest)
        adapted = adapters.adapt(request, self.bundle, self.components, self.encoders)
        encoded = text.encode(
            request.prompt,
            adapted.encoders,
            job.sigmas,
            negative=request.negative if job.guidance != 1 else None,
            clip_skip=request.clip_skip,
            sizes=self._sizes(job),
            zero_empty_negative=self.family.name == "sdxl",
        )
        notes += (*adapted.notes, *encoded.notes)
        start = None if request.init is None else self._encode(job, request.init)
        model = self._denoiser(job, adapted.unet, encoded, start)
        finished: list[tuple[int, Array]] = []
        for index, seed in enumerate(job.seeds):
            latents = None
            for number, latents in enumerate(self._draw(job, model, seed, start), 1):
                yield Step(index, number, len(job.sigmas) - 1, latents)
            assert latents is not None
            finished.append((seed, latents))
            if self.components.plan == "resident":
                yield self._finish(job, adapted, *finished.pop(), notes)
        for seed, latents in finished:
            yield self._finish(job, adapted, seed, latents, notes)

    def preview(self, latents: Array) -> Image.Image:
        """A picture of unfinished `latents`, by the VAE's decoder: as costly as the last step."""
        return pictures.to_image(vae.decode(self.components.get("vae_decoder"), latents, self.manifest.latent))

    @property
    def family(self) -> Family:
        return FAMILIES[self.manifest.family]

    def _sizes(self, job: Job) -> text.Sizes | None:
        """What SDXL wants to know about the picture."""
        if self.family.architecture != "sdxl":
            return None
        size = (job.height, job.width)
        return text.Sizes(original=size, target=size, aesthetic=(6.0, 2.5) if self.family.task == "refine" else None)

    def _denoiser(self, job: Job, unet: Handle, encoded: text.Encoded, start: Array | None) -> Denoise:
        """The U-Net with everything the prompt, the guidance and the family add to it."""
        noise = self.manifest.noise
        predict = denoise.unet(unet, noise)
        guidance = Guidance(scale=job.guidance, rescale=job.request.rescale)
        extra: dict[str, Array] = {}
        if "timestep_cond" in unet.inputs:  # distilled to be guided by a number: no negative prompt, one call a step
            width = unet.inputs["timestep_cond"].shape[-1]
            assert isinstance(width, int)
            extra["timestep_cond"] = denoise.guidance_embedding(job.guidance, width)
            return denoise.guided(predict, noise.prediction, _adding(encoded.positive, extra), None, Guidance(scale=1.0))
        if self.family.task in {"inpaint", "instruct"}:
            extra[denoise.EXTRA_CHANNELS] = self._picture_channels(job, start)
        positive = _adding(encoded.positive, extra)
        negative = None if encoded.negative is None else _adding(encoded.negative, extra)
        if self.family.task == "instruct" and negative is not None:
            return denoise.guided_by_picture(predict, noise.prediction, positive, negative, guidance)
        return denoise.guided(predict, noise.prediction, positive, negative, guidance)

    def _picture_channels(self, job: Job, start: Array | None) -> Array:
        """What U-Nets that work on a picture see beside the sample: mask and masked picture, or the picture itself."""
        request, latent = job.request, self.manifest.latent
        if start is None or request.init is None:
            raise RequestError(f"{self.manifest.source.name} works on a picture: give one with init (--init FILE)")
        if self.family.task == "instruct":
            return start / np.float32(latent.scaling)
        everything = Image.new("L", request.init.size, 255)
        mask = inpaint.pixel_mask(request.mask or everything, job.width, job.height)
        picture = pictures.to_array(pictures.fit(request.init, job.width, job.height)) * (mask < 0.5)
        masked = vae.encode(self.components.get("vae_encoder"), picture, latent, tiled=self.components.plan == "streamed")
        return np.concatenate([inpaint.latent_mask(mask, latent.downscale), masked], axis=1)

    def _encode(self, job: Job, init: Image.Image) -> Array:
        fitted = pictures.to_array(pictures.fit(init, job.width, job.height))
        return vae.encode(self.components.get("vae_encoder"), fitted, self.manifest.latent, tiled=self.components.plan == "streamed")

    def _draw(self, job: Job, model: Denoise, seed: int, start: Array | None) -> Iterator[Array]:
        """The latents after each step of one picture."""
        latent, request = self.manifest.latent, job.request
        rng = randomness.rng(request.rng, seed)
        noise = rng.normal((1, latent.channels, job.height // latent.downscale, job.width // latent.downscale))
        sigma = float(job.sigmas[0])
        if start is None or (self.family.task == "inpaint" and request.strength == 1):  # its U-Net sees the picture anyway
            x = noise * np.float32(samplers.start_scale(job.sampler, self.manifest.noise, sigma))
        else:
            x = start + np.float32(sigma) * noise
            if request.mask is not None and self.family.task != "inpaint":
                mask = inpaint.latent_mask(inpaint.pixel_mask(request.mask, job.width, job.height), latent.downscale)
                model = inpaint.keep_outside(model, mask, start, noise)
        for number, x in enumerate(job.sampler.function(model, x, job.sigmas, rng), 1):  # noqa: B020  # the sample itself moves on
            if not np.isfinite(x).all():
                raise NumericalError(
                    f"step {number}: NaN or Inf in the latents: expected finite numbers; use more steps, less guidance, or an fp32 U-Net"
                )
            yield x

    def _finish(self, job: Job, adapted: Adapted, seed: int, latents: Array, notes: list[str]) -> Picture:
        decoder, latent = self.components.get("vae_decoder"), self.manifest.latent
        tiled = self.components.plan == "streamed"
        try:
            decoded = vae.decode(decoder, latents, latent, tiled=tiled)
        except ResourceError:
            if tiled:
                raise
            notes.append("memory did not suffice to decode the picture whole: it was decoded in tiles")
            decoded = vae.decode(decoder, latents, latent, tiled=True)
        image = pictures.to_image(decoded)
        request = job.request
        if request.mask is not None and request.init is not None:
            image = inpaint.paste(image, pictures.fit(request.init, job.width, job.height), request.mask)
        return Picture(image, seed, _record(job, adapted, seed, self.manifest))


def load(
    folder: str | Path | None = None,
    provider: str = "auto",
    memory: str = "auto",
    *,
    threads: int = 0,
    cache: Path | None = None,
) -> Pipeline:
    """Open the bundle in `folder`, or the demo model, to draw with it.

    `threads` 0 takes one a physical core; optimized graphs are kept in the folder `cache`, if one is given.

    Raises:
        BundleError: no bundle there, or it is damaged, hostile or made for something else.
        ProviderError: the provider is not there, or does not run this bundle.
        RequestError: an unknown memory plan.
    """
    bundle = open_bundle(DEMO if folder is None else Path(folder))
    chosen = resolve(provider, bundle.manifest.target)
    plan, note = choose_plan(memory, bundle)
    options = SessionOptions(threads=threads or machine.cores(), cache=cache)
    return Pipeline(bundle, Components(bundle, chosen, plan, options), tuple(one for one in (chosen.note, note) if one))


def _adding(conditioning: Conditioning, extra: Feeds) -> Conditioning:
    """`conditioning` with the same feeds added at every sigma."""
    if not extra:
        return conditioning
    return lambda sigma: [Weighted(weight, {**feeds, **extra}) for weight, feeds in conditioning(sigma)]


def _encoders(bundle: Bundle, components: Components) -> Iterator[text.TextEncoder]:
    several = len(bundle.manifest.tokenizers) > 1
    for name, description in bundle.manifest.tokenizers.items():
        encoder = name.replace("tokenizer", "text_encoder")
        tokenizer = open_tokenizer(bundle.path(description.folder), description)
        is_second = encoder == "text_encoder_2"
        yield text.TextEncoder(components.get(encoder), tokenizer, penultimate=several or is_second, pooled=is_second)


def _record(job: Job, adapted: Adapted, seed: int, manifest: Manifest) -> Record:
    request = job.request
    extra: dict[str, object] = {"clip_skip": request.clip_skip, "rescale": request.rescale, **adapted.record}
    if request.rng != "numpy":
        extra["rng"] = request.rng
    if request.init is not None:
        extra["strength"] = request.strength
    return Record(
        prompt=request.prompt,
        negative=request.negative,
        seed=seed,
        steps=job.steps,
        guidance=job.guidance,
        sampler=job.sampler.name,
        schedule=job.schedule,
        width=job.width,
        height=job.height,
        model=manifest.source.name,
        model_hash=manifests.fingerprint(manifest),
        extra={name: value for name, value in extra.items() if value},
    )
