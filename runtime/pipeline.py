"""Prompt in, picture out: the flow of the runtime in one file.

`load` opens a bundle, `Pipeline.steps` is the loop: it yields after each step and at the end of each picture, so that
progress, previews and cancelling belong to the caller. `Pipeline.generate` runs it to the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, Unpack

import numpy as np
from PIL import Image

from ..models.bundle import DEMO, Bundle, open_bundle
from ..models.errors import RequestError, ResourceError
from ..models.families import FAMILIES, Family
from ..models.manifest import Manifest
from . import adapters, denoise, graph_cache, hires, inpaint, machine, pictures, preview, recording, refine, samplers, text, vae
from .adapters import Adapted
from .components import PLANS, TILE, Components, Handle, choose_plan
from .denoise import Array, Conditioning, Denoise, Feeds, Guidance, Weighted
from .drawing import Drawing, Run
from .inpaint import Scene
from .parameters import Record
from .providers import resolve
from .request import TINY_DECODER, Fields, Job, Pass, Request, settle
from .safety import COMPONENT as CHECKER
from .safety import Filter, open_filter
from .session import SessionOptions
from .tokenizer import open_tokenizer


@dataclass(frozen=True)
class Step:
    """One step of one picture is done."""

    picture: int
    """Index of the picture, from 0."""
    number: int
    """Steps of it done, from 1."""
    total: int
    """Steps that it takes, over all its passes."""
    latents: Array
    """(1, channels, height, width), float32, with the noise that is left."""
    denoised: Array
    """What the model takes for the finished latents; `Pipeline.preview` makes a picture of it."""
    done: float
    """The share of the steps of all pictures that is done, 0 to 1."""


@dataclass(frozen=True)
class Picture:
    """One picture is done."""

    image: Image.Image
    seed: int
    record: Record
    """What it takes to draw it again; goes into the file's metadata."""
    flagged: bool = False
    """The safety checker found it unsafe: `image` is black."""


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
    safety: Literal["on", "off", "none"] = "none"
    """Whether the bundle's safety checker saw the pictures, was switched off, or is not there."""

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
    safety: bool = True
    """Whether the bundle's safety checker, if it has one, sees every finished picture."""
    encoders: tuple[text.TextEncoder, ...] = field(default=())
    filter: Filter | None = None
    refiner: Pipeline | None = None
    """Draws the last steps (SDXL's refiner)."""
    _factors: preview.Factors | None = None

    def __post_init__(self) -> None:
        self.encoders = tuple(_encoders(self.bundle, self.components))
        self.filter = open_filter(self.bundle, self.components) if self.safety else None

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
        if self.refiner is not None:
            self.refiner.close()

    def cancel(self) -> None:
        """Stop the model call that runs now, from any thread; whoever waits for it gets `session.Cancelled`."""
        self.components.cancel()
        if self.refiner is not None:
            self.refiner.cancel()

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
        started, before = time.perf_counter(), self._seconds()
        notes: list[str] = []
        drawn: list[Picture] = []
        for event in self.steps(request, notes):
            seen(event)
            if isinstance(event, Picture):
                drawn.append(event)
        timings = {name: seconds - before.get(name, 0.0) for name, seconds in self._seconds().items()}
        return Result(
            pictures=tuple(drawn),
            provider=self.components.provider.name,
            plan=self.components.plan,
            notes=(*self.notes, *self.components.notes(), *notes),
            timings={**timings, "total": time.perf_counter() - started},
            safety="none" if CHECKER not in self.components else "on" if self.safety else "off",
        )

    def steps(self, request: Request, notes: list[str] | None = None) -> Iterator[Step | Picture]:
        """Draw `request` step by step; after the last `Step` of a picture comes its `Picture`.

        Stop iterating to cancel. What the user should know is appended to `notes`.
        """
        notes = [] if notes is None else notes
        job = settle(request, self.manifest, refines=self.refiner is not None)
        adapted = adapters.adapt(request, self.bundle, self.components, self.encoders)
        notes += adapted.notes
        scene = _scene(job)
        runs = self._runs(job, adapted, scene, notes)
        said = {**adapted.record, **recording.inputs(request, self.refiner.manifest if self.refiner else None)}
        drawings = [Drawing(job.request, *seeds) for seeds in zip(range(request.count), job.seeds, job.variation_seeds, strict=True)]
        done, total = 0, sum(run.steps for run in runs)
        for group in [[one] for one in drawings] if self.components.plan == "resident" else [drawings]:
            for run in runs:
                self._make_room(run.owner)
                run.begin(group)
                for drawing in group:
                    for latents in run.draw(drawing, job.sampler, job.options):
                        done += 1
                        yield Step(drawing.index, drawing.steps, total, latents, drawing.denoised, done / (total * request.count))
            self._make_room(self.components)
            images = (self._image(job, scene, drawing, notes) for drawing in group)
            # The decoder and the safety checker are each opened once.
            for drawing, image in zip(group, images if self.filter is None else list(images), strict=True):
                yield self._finish(job, drawing, image, said, notes)

    def preview(self, latents: Array, *, cheap: bool = False) -> Image.Image:
        """A picture of unfinished `latents` (best `Step.denoised`) by the VAE's decoder: as costly as the end of a picture.

        `cheap`: by the tiny decoder, if the bundle has one, else a small picture with a pixel for each latent pixel, almost for free.
        """
        if not cheap or TINY_DECODER in self.components:
            name = TINY_DECODER if cheap else "vae_decoder"
            return pictures.to_image(vae.decode(self.components.get(name), latents, self.manifest.latent))
        if self._factors is None:
            latent = self.manifest.latent
            found = preview.known(self.family.architecture, latent.channels)
            self._factors = preview.fit(self._encode, latent.downscale) if found is None else found
        return preview.linear(latents, self._factors)

    def _seconds(self) -> dict[str, float]:
        """Time spent inside each component so far."""
        refining = {} if self.refiner is None else self.refiner.components.seconds
        return {**self.components.seconds, **{f"refiner_{name}": seconds for name, seconds in refining.items()}}

    @property
    def family(self) -> Family:
        return FAMILIES[self.manifest.family]

    def _runs(self, job: Job, adapted: Adapted, scene: Scene | None, notes: list[str]) -> list[Run]:
        """The ways through noise levels that each picture takes: one, with hires a second, with a refiner the end of the last apart."""
        encoded = self._encode_prompt(job, job.passes[0], adapted.encoders, notes)
        start = None if scene is None else self._encode(pictures.to_array(scene.picture))
        seen = self._picture_channels(scene, start)

        def keeping(model: Callable[[], Denoise]) -> Callable[[Drawing], Denoise]:
            """`model`, holding to what the mask does not cover, unless the U-Net sees that by itself."""
            if scene is None or scene.mask is None or start is None or self.family.task == "inpaint":
                return lambda _drawing: model()
            mask, known = inpaint.latent_mask(inpaint.pixel_mask(scene.mask), self.manifest.latent.downscale), start
            return lambda drawing: inpaint.keep_outside(model(), mask, known, drawing.noise)

        runs = [
            Run(
                self.components,
                one.sigmas,
                partial(self._begin, job, start) if number == 0 else partial(self._enlarge, job, notes),
                keeping(partial(self._denoiser, job, one, adapted.unet, encoded, seen)),
            )
            for number, one in enumerate(job.passes)
        ]
        if self.refiner is None or job.request.refiner_start is None:
            return runs
        *before, last = runs
        place = refine.handover(last.sigmas, self.manifest.noise, job.request.refiner_start)
        self._make_room(self.refiner.components)
        end = job.passes[-1]
        states = self.refiner._encode_prompt(job, end, self.refiner.encoders, notes)  # noqa: SLF001  # one of us
        unet = self.refiner.components.get("unet")
        model = partial(self.refiner._denoiser, job, end, unet, states, {})  # noqa: SLF001  # likewise
        return [*before, *refine.split(last, place, self.refiner.components, keeping(model), notes)]

    def _encode_prompt(self, job: Job, one: Pass, encoders: Sequence[text.TextEncoder], notes: list[str]) -> text.Encoded:
        request = job.request
        encoded = text.encode(
            request.prompt,
            encoders,
            one.sigmas,
            negative=request.negative if job.guidance != 1 else None,
            clip_skip=request.clip_skip,
            sizes=self._sizes(one),
            zero_empty_negative=self.family.architecture == "sdxl" and self.family.task != "refine",
        )
        notes += [note for note in encoded.notes if note not in notes]
        return encoded

    def _sizes(self, one: Pass) -> text.Sizes | None:
        """What SDXL wants to know about the picture."""
        if self.family.architecture != "sdxl":
            return None
        size = (one.height, one.width)
        return text.Sizes(original=size, target=size, aesthetic=(6.0, 2.5) if self.family.task == "refine" else None)

    def _denoiser(self, job: Job, one: Pass, unet: Handle, encoded: text.Encoded, seen: Feeds) -> Denoise:
        """The U-Net with everything the prompt, the guidance and the family add to it."""
        noise = self.manifest.noise
        predict = denoise.unet(unet, noise)
        guidance = Guidance(scale=job.guidance, rescale=job.request.rescale, interval=job.interval)
        extra = dict(seen)
        if "timestep_cond" in unet.inputs:  # distilled to be guided by a number: no negative prompt, one call a step
            width = unet.inputs["timestep_cond"].shape[-1]
            assert isinstance(width, int)
            extra["timestep_cond"] = denoise.guidance_embedding(job.guidance, width)
            return denoise.guided(predict, noise.prediction, _adding(encoded.positive, extra), None, Guidance(scale=1.0))
        sizes = self._sizes(one)
        if sizes is not None and one is not job.passes[0]:  # the text was encoded with the sizes of the first
            extra["time_ids"] = sizes.time_ids()
        positive = _adding(encoded.positive, extra)
        negative = None if encoded.negative is None else _adding(encoded.negative, extra)
        if self.family.task == "instruct" and negative is not None:
            picture_scale = 1.5 if job.request.image_guidance is None else job.request.image_guidance
            return denoise.guided_by_picture(predict, noise.prediction, positive, negative, replace(guidance, picture_scale=picture_scale))
        return denoise.guided(predict, noise.prediction, positive, negative, guidance)

    def _picture_channels(self, scene: Scene | None, start: Array | None) -> dict[str, Array]:
        """What U-Nets that work on a picture see beside the sample: mask and masked picture, or the picture itself."""
        if self.family.task not in {"inpaint", "instruct"}:
            return {}
        if start is None or scene is None:
            raise RequestError(f"{self.manifest.source.name} works on a picture: give one with init (--init FILE)")
        if self.family.task == "instruct":
            return {denoise.EXTRA_CHANNELS: start / np.float32(self.manifest.latent.scaling)}
        mask = inpaint.pixel_mask(scene.mask or Image.new("L", scene.picture.size, 255))
        masked = self._encode(pictures.to_array(scene.picture) * (mask < 0.5))
        return {denoise.EXTRA_CHANNELS: inpaint.channels(mask, masked)}

    def _begin(self, job: Job, start: Array | None, group: Sequence[Drawing]) -> None:
        """The first latents of pictures: noise, over the latents `start` if there are any."""
        latent, first = self.manifest.latent, job.passes[0]
        sigma = float(first.sigmas[0])
        anew = job.request.strength == 1 and self.family.task in {"inpaint", "instruct"}  # these U-Nets see the picture anyway
        for drawing in group:
            shape = (1, latent.channels, first.height // latent.downscale, first.width // latent.downscale)
            noise = drawing.draw_noise(shape)
            if start is None or anew:
                drawing.latents = noise * np.float32(samplers.start_scale(job.sampler, self.manifest.noise, sigma))
            else:
                drawing.latents = start + np.float32(sigma) * noise

    def _enlarge(self, job: Job, notes: list[str], group: Sequence[Drawing]) -> None:
        """Hires: from the latents of the first pass to the first ones of the second."""
        latent, second = self.manifest.latent, job.passes[1]
        upscaler = hires.find(job.request.hires_upscaler)
        drawn = [drawing.latents for drawing in group]
        if upscaler.kernel is None:
            decoded = [pictures.to_image(self._decode(job, latents, notes)) for latents in drawn]
            drawn = [self._encode(pictures.to_array(pictures.fit(image, second.width, second.height))) for image in decoded]
        else:
            size = (second.height // latent.downscale, second.width // latent.downscale)
            drawn = [hires.resize(latents, *size, upscaler) for latents in drawn]
        for drawing, latents in zip(group, drawn, strict=True):
            drawing.latents = latents + np.float32(second.sigmas[0]) * drawing.draw_noise(latents.shape)

    def _encode(self, picture: Array) -> Array:
        return vae.encode(self.components.get("vae_encoder"), picture, self.manifest.latent, tile=self.components.tile)

    def _decode(self, job: Job, latents: Array, notes: list[str]) -> Array:
        decoder, latent = self.components.get(TINY_DECODER if job.request.decoder == "tiny" else "vae_decoder"), self.manifest.latent
        tile = self.components.tile
        try:
            return vae.decode(decoder, latents, latent, tile=tile)
        except ResourceError:
            if tile:
                raise
        notes.append("memory did not suffice to decode the picture whole: it was decoded in tiles")
        return vae.decode(decoder, latents, latent, tile=TILE)

    def _make_room(self, owner: Components) -> None:
        """Unless everything may stay in memory, close what is not `owner`'s."""
        others = (self.components, *((self.refiner.components,) if self.refiner else ()))
        for other in others if self.components.plan != "resident" else ():
            if other is not owner:
                other.close()

    def _image(self, job: Job, scene: Scene | None, drawing: Drawing, notes: list[str]) -> Image.Image:
        image = pictures.to_image(self._decode(job, drawing.latents, notes))
        return image if scene is None else scene.finished(image)

    def _finish(self, job: Job, drawing: Drawing, image: Image.Image, said: Mapping[str, Any], notes: list[str]) -> Picture:
        flagged = self.filter is not None and self.filter.flags(image)
        if flagged:
            notes.append(f"seed {drawing.seed}: the safety checker flagged the picture, so it is black: draw with another seed or prompt")
            image = Image.new("RGB", image.size)
        off = not self.safety and CHECKER in self.components
        said = {**said, "safety": "flagged" if flagged else "off"} if flagged or off else said
        return Picture(image, drawing.seed, recording.record_of(job, drawing, self.manifest, said), flagged)


def load(
    folder: str | Path | None = None,
    provider: str = "auto",
    memory: str = "auto",
    *,
    threads: int = 0,
    cache: str | Path | None = "auto",
    safety: bool = True,
    refiner: str | Path | None = None,
) -> Pipeline:
    """Open the bundle in `folder`, or the demo model, to draw with it.

    `threads` 0 takes one a physical core; optimized graphs of large models are kept in the folder `cache`, "auto" the
    system's place for caches, so that the next start is fast; None keeps nothing. With `safety` off,
    the bundle's safety checker, if it has one, does not see the pictures, and the result says so. The bundle `refiner` draws
    the last steps; where memory is `auto`, it and the base are then never open at once.

    Raises:
        BundleError: no bundle there, or it is damaged, hostile or made for something else.
        ProviderError: the provider is not there, or does not run this bundle.
        RequestError: an unknown memory plan.
    """
    bundle = open_bundle(DEMO if folder is None else Path(folder))
    chosen = resolve(provider, bundle.manifest.target)
    plan, note = choose_plan(memory, bundle)
    folder_of_cache, homeless = _cache(cache, bundle)
    options = SessionOptions(threads=threads or machine.cores(), cache=folder_of_cache)
    second: Pipeline | None = None
    if refiner is not None:
        refining = open_bundle(Path(refiner))
        refine.check(bundle.manifest, refining.manifest)
        if memory == "auto":
            plan = max(plan, choose_plan(memory, refining)[0], "sequential", key=PLANS.index)
            note = f"memory: two models take turns, so the plan is {plan}"
        components = Components(refining, resolve(chosen.name, refining.manifest.target), plan, options, adaptive=memory == "auto")
        second = Pipeline(refining, components, safety=False)
    components = Components(bundle, chosen, plan, options, adaptive=memory == "auto")
    off = "" if safety or CHECKER not in components else "the safety filter was switched off"
    return Pipeline(bundle, components, tuple(one for one in (chosen.note, note, homeless, off) if one), safety=safety, refiner=second)


def _cache(cache: str | Path | None, bundle: Bundle) -> tuple[Path | None, str]:
    """The folder for optimized graphs, if any of `bundle` is worth it; none, and a note where there should be one."""
    if cache is None or not any(graph_cache.pays(bundle.path(one.graph)) for one in bundle.manifest.components.values()):
        return None, ""
    folder = graph_cache.default_folder() if cache == "auto" else Path(cache)
    return folder, "" if folder else f"optimized graphs are not cached: {graph_cache.why_unwritable(None)}"


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


def _scene(job: Job) -> Scene | None:
    """What is drawn over."""
    request, first = job.request, job.passes[0]
    if request.init is None:
        return None
    padding = request.mask_padding if request.only_masked else None
    return inpaint.scene(request.init, request.mask, first.width, first.height, blur=request.mask_blur, padding=padding)
