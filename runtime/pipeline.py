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
from typing import Any, Self, Unpack

from PIL import Image

from ..models.bundle import DEMO, Bundle, open_bundle
from ..models.errors import ResourceError
from ..models.families import FAMILIES, Family
from ..models.manifest import Manifest
from . import adapters, conditioning, graph_cache, hires, inpaint, machine, pictures, preview, recording, refine, samplers, speed, text, vae
from .adapters import Adapted
from .advice import followed
from .components import TILE, Components
from .denoise import Array, Denoise, combine
from .drawing import Drawing, Run
from .failures import scarce
from .inpaint import Scene
from .job import TINY_DECODER, Job, settle
from .plans import PLANS, choose_plan
from .providers import resolve
from .request import Fields, Request
from .result import Picture, Result, Step
from .safety import COMPONENT as CHECKER
from .safety import Filter, open_filter
from .session import SessionOptions


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
        self._factors = preview.stated(self.manifest)
        self.encoders = tuple(conditioning.encoders(self.bundle, self.components))
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
        """Draw `prompt`; `fields` are those of `Request`, and come before those of a request that is given.

        Raises:
            RequestError: what was asked for cannot be drawn.
            ResourceError: memory does not suffice.
            NumericalError: NaN or Inf came out.
        """
        request = Request(prompt, **fields) if isinstance(prompt, str) else replace(prompt, **fields)
        return self.watch(request, lambda _event: None)

    def watch(self, request: Request, seen: Callable[[Step | Picture], None]) -> Result:
        """`generate`, with `seen` called after each step and with each picture as soon as it is done."""
        started, before = time.perf_counter(), self._seconds()
        notes: list[str] = []
        drawn: list[Picture] = []
        with scarce("drawing"):
            for event in self.steps(request, notes):
                seen(event)
                if isinstance(event, Picture):
                    drawn.append(event)
        timings = {name: seconds - before.get(name, 0.0) for name, seconds in self._seconds().items()}
        return Result(
            pictures=tuple(drawn),
            provider=self.components.provider.name,
            plan=self.components.plan,
            notes=(*self.notes, *self.components.notes(), *(self.refiner.components.notes() if self.refiner else ()), *notes),
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
        notes += (*adapted.notes, *speed.notes(speed.find(request.speed), adapted.unet))
        scene = inpaint.scene_of(job.request, job.passes[0].width, job.passes[0].height)
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

        `cheap`: by the tiny decoder, if the bundle has one, else a small picture with a pixel for each latent pixel, almost for free
        (where a bundle does not say how, once the decoder has drawn a small chart).
        """
        if not cheap or TINY_DECODER in self.components:
            name = TINY_DECODER if cheap else "vae_decoder"
            return pictures.to_image(vae.decode(self.components.get(name), latents, self.manifest.latent))
        if self._factors is None:
            self._factors = preview.factors(self.components.get("vae_decoder"), self.manifest.latent)
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
        encoded = conditioning.encode(job, job.passes[0], self.family, adapted.encoders, notes)
        start = None if scene is None else self._encode(pictures.to_array(scene.picture))
        seen = conditioning.picture_channels(self.manifest, scene, start, self._encode)

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
                keeping(partial(conditioning.denoiser, job, one, self.manifest, adapted.unet, encoded, seen)),
            )
            for number, one in enumerate(job.passes)
        ]
        if self.refiner is None or job.request.refiner_start is None:
            return runs
        *before, last = runs
        place = refine.handover(last.sigmas, self.manifest.noise, job.request.refiner_start)
        self._make_room(self.refiner.components)
        end, other = job.passes[-1], self.refiner
        states = conditioning.encode(job, end, other.family, other.encoders, notes)
        model = partial(conditioning.denoiser, job, end, other.manifest, other.components.get("unet"), states, {})
        return [*before, *refine.split(last, place, self.refiner.components, keeping(model), notes)]

    def _begin(self, job: Job, start: Array | None, group: Sequence[Drawing]) -> None:
        """The first latents of pictures: noise, over the latents `start` if there are any."""
        latent, first = self.manifest.latent, job.passes[0]
        sigma = float(first.sigmas[0])
        anew = job.request.strength == 1 and self.family.task in {"inpaint", "instruct"}  # these U-Nets see the picture anyway
        for drawing in group:
            shape = (1, latent.channels, first.height // latent.downscale, first.width // latent.downscale)
            noise = drawing.draw_noise(shape)
            if start is None or anew:
                drawing.latents = combine((samplers.start_scale(job.sampler, self.manifest.noise, sigma), noise))
            else:
                drawing.latents = combine((sigma, noise), (1.0, start))

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
            drawing.latents = combine((float(second.sigmas[0]), drawing.draw_noise(latents.shape)), (1.0, latents))

    def _encode(self, picture: Array) -> Array:
        return vae.encode(self.components.get("vae_encoder"), picture, self.manifest.latent, tile=self.components.tile("vae_encoder"))

    def _decode(self, job: Job, latents: Array, notes: list[str]) -> Array:
        decoder, latent = self.components.get(TINY_DECODER if job.request.decoder == "tiny" else "vae_decoder"), self.manifest.latent
        tile = self.components.tile(decoder.name)
        try:
            return vae.decode(decoder, latents, latent, tile=tile)
        except ResourceError:
            if tile or self.components.in_bands(decoder.name):
                raise
        self.components.close()  # the decoder keeps what it had taken until then
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

    `threads` 0 takes one a physical core; where `provider` is left open too, both are what `diffusette bench --advise` found
    best (advice.py). Optimized graphs of large models are kept in the folder `cache`, "auto" the
    system's place for caches, so that the next start is fast; None keeps nothing. With `safety` off,
    the bundle's safety checker, if it has one, does not see the pictures, and the result says so. The bundle `refiner` draws
    the last steps; where memory is `auto`, it and the base are then never open at once.

    Raises:
        BundleError: no bundle there, or it is damaged, hostile or made for something else.
        ProviderError: the provider is not there, or does not run this bundle.
        RequestError: an unknown memory plan.
    """
    bundle = open_bundle(DEMO if folder is None else Path(folder))
    provider, threads = followed(bundle.manifest, provider, threads)
    chosen = resolve(provider, bundle.manifest.target)
    plan, note = choose_plan(memory, bundle)
    folder_of_cache, homeless = graph_cache.folder_for(cache, [bundle.path(one.graph) for one in bundle.manifest.components.values()])
    options = SessionOptions(threads=threads or machine.cores(), cache=folder_of_cache)
    second: Pipeline | None = None
    if refiner is not None:
        refining = open_bundle(Path(refiner))
        refine.check(bundle.manifest, refining.manifest)
        if memory == "auto":
            plan = PLANS[max(map(PLANS.index, (plan, choose_plan(memory, refining)[0], "sequential")))]
            note = f"memory: two models take turns, so the plan is {plan}"
        components = Components(refining, resolve(chosen.name, refining.manifest.target), plan, options, adaptive=memory == "auto")
        second = Pipeline(refining, components, safety=False)
    components = Components(bundle, chosen, plan, options, adaptive=memory == "auto")
    off = "" if safety or CHECKER not in components else "the safety filter was switched off"
    return Pipeline(bundle, components, tuple(one for one in (chosen.note, note, homeless, off) if one), safety=safety, refiner=second)
