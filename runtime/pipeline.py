"""Prompt in, image out: the flow of the runtime in one file.

`load` opens a bundle as a `Pipeline`. A `_Generation` is one request on its way: it resolves the request, encodes the prompts,
denoises in stages, decodes, and yields an event after each step and each image, so that progress, previews and cancelling belong to
the caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack, cast

import numpy as np
from PIL import Image

from ..models.bundle import DEMO, Bundle, open_bundle
from ..models.errors import Cancelled, NumericalError, RequestError, ResourceError
from ..models.families import FAMILIES, Family
from ..models.manifest import Manifest
from . import conditioning, reproduce, unet_graphs
from .adapters import apply
from .denoising import Drawing, Stage
from .engine import graph_cache, hardware
from .engine.components import TILE, Components, Runner
from .engine.memory_plans import AUTO, PLANS, choose_plan
from .engine.ort_errors import scarce
from .engine.providers import resolve as resolve_provider
from .engine.session import SessionOptions
from .engine.tuned_settings import followed
from .images import hires, image_io, inpaint, preview, vae
from .images.safety_checker import COMPONENT as CHECKER
from .images.safety_checker import HIDINGS, Hiding, hidden, open_filter, safety_of
from .names import look_up
from .normalize import path_of, yes_or_no
from .refiner import NO_STEPS, check_refiner, handover, split_stage
from .request import Fields, Request, number_of, shown
from .resolve import TINY_DECODER, resolve
from .result import Note, Picture, Result, Step
from .sampling import samplers, speed
from .sampling.denoise import combine
from .types import Array, Denoise


class Pipeline:
    """A model that is ready to generate. Threads may share it. Close it, or use `with`, to free its memory.

    Attributes:
        bundle: the opened model, with its manifest.
        components: the model's sessions under a memory plan, on a provider.
        notes: notes from loading, such as a provider that `auto` skipped.
        safety: whether the bundle's safety checker, if it has one, checks every image.
        flagged: what becomes of an image that the checker flags: "black", or "blur".
        refiner: the pipeline that denoises the last steps, such as SDXL's refiner, or None.

    Example:
        >>> with diffusette.load() as pipeline:
        ...     result = pipeline.generate("red apple, flat style, blue background", seed=7)
        >>> result.images[0].size
        (128, 128)
    """

    def __init__(
        self,
        bundle: Bundle,
        components: Runner,
        *,
        notes: tuple[str, ...] = (),
        safety: bool = True,
        flagged: Hiding = "black",
        refiner: Pipeline | None = None,
    ) -> None:
        self.bundle = bundle
        self.components = components
        self.notes = notes
        self.safety = safety
        self.flagged: Hiding = flagged
        self.refiner = refiner
        self.encoders = tuple(conditioning.text_encoders(bundle, components))
        self.filter = open_filter(bundle, components) if safety else None
        self._factors = preview.stated(bundle.manifest)
        self._cancels = 0

    def __repr__(self) -> str:
        return f"<Pipeline {self.manifest.source.name} on {self.components.provider.name}, {self.components.plan}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest, with family, defaults, components, source and licence of the weights."""
        return self.bundle.manifest

    @property
    def family(self) -> Family:
        """The architecture and task of the model."""
        return FAMILIES[self.manifest.family]

    def close(self) -> None:
        """Free the memory of all sessions. The pipeline stays usable: sessions open again when they are needed."""
        self.components.close()
        if self.refiner is not None:
            self.refiner.close()

    def cancel(self) -> None:
        """Stop what is being generated, from any thread; `generate`, `watch` and `steps` raise `Cancelled`.

        A running model call stops at once. What has not begun yet is not touched.
        """
        self._cancels += 1  # for a generation between two model calls
        self.components.cancel()
        if self.refiner is not None:
            self.refiner.cancel()

    def generate(self, prompt: str | Request, **fields: Unpack[Fields]) -> Result:
        """Generate the images of a request.

        Args:
            prompt: the text, or a whole `Request`.
            **fields: fields of `Request`, such as `seed`, `steps`, `width`, `negative`, `init`; they override those of a given request.

        Returns:
            The images, with seeds, records, timings and notes.

        Raises:
            RequestError: the request cannot be generated with this model; the message names the field.
            BundleError: a LoRA or embedding file is damaged, or a graph fails.
            ResourceError: not enough memory.
            NumericalError: NaN or Inf in the latents or the image.
            Cancelled: another thread called `cancel`.

        Example:
            >>> result = pipeline.generate("fox, noto style", seed=1, steps=10)
            >>> result.images[0].save("fox.png")
        """
        request = replace(prompt, **fields) if isinstance(prompt, Request) else Request(prompt, **fields)
        return self.watch(request, lambda _event: None)

    def watch(self, request: Request, seen: Callable[[Step | Note | Picture], None], *, keep: bool = True) -> Result:
        """Generate `request` and call `seen` with every event as it comes; otherwise like `generate`.

        With `keep` False, the result holds no images, so that memory does not grow with their number: `seen` takes them.
        """
        started, before = time.perf_counter(), self._seconds()
        pictures: list[Picture] = []
        notes: list[str] = []
        for event in self.steps(request):
            seen(event)
            if isinstance(event, Note):
                notes.append(event.text)
            elif isinstance(event, Picture) and keep:
                pictures.append(event)
        timings = {name: seconds - before.get(name, 0.0) for name, seconds in self._seconds().items()}
        refining = self.refiner.components.notes() if self.refiner else ()
        return Result(
            pictures=tuple(pictures),
            provider=self.components.provider.name,
            plan=self.components.plan,
            notes=(*self.notes, *self.components.notes(), *refining, *notes),
            timings={**timings, "total": time.perf_counter() - started},
            safety=safety_of(self.components, checks=self.safety),
        )

    def steps(self, request: Request) -> Iterator[Step | Note | Picture]:
        """Generate `request` step by step.

        Yields:
            A `Step` after each denoising step, a `Note` when the user should know something, and a `Picture` when an image is done.
            Stop iterating to cancel.

        Raises what `generate` raises.
        """
        begun = self._cancels
        with scarce("generating"):
            for event in _Generation(self, request).events():
                if self._cancels != begun:
                    raise Cancelled("the generation was cancelled")
                yield event

    def size_of(self, request: Request) -> tuple[int, int]:
        """Return the width and height of the images of `request`. Raises what `generate` raises for a wrong request."""
        return resolve(request, self.manifest, refines=self.refiner is not None).size

    def preview(self, latents: Array, *, cheap: bool = False) -> Image.Image:
        """An image of unfinished latents.

        Args:
            latents: (1, channels, height, width); best `Step.denoised`.
            cheap: use the bundle's tiny decoder if it has one, or else a small image with one pixel per latent pixel, which costs
                almost nothing. By default the VAE decodes, at the cost of finishing an image.
        """
        channels = self.manifest.latent.channels
        fits = isinstance(cast("object", latents), np.ndarray) and latents.ndim == 4 and latents.shape[:2] == (1, channels)
        if not fits or not latents.size:
            raise RequestError(f"latents: {shown(latents)}, expected an array of shape (1, {channels}, height, width)")
        if not np.isfinite(latents).all():
            raise NumericalError("NaN or Inf in the latents: expected finite numbers to show")
        if not cheap or TINY_DECODER in self.components:
            name = TINY_DECODER if cheap else "vae_decoder"
            return image_io.to_image(vae.decode(self.components.get(name), latents, self.manifest.latent))
        if self._factors is None:
            self._factors = preview.factors(self.components.get("vae_decoder"), self.manifest.latent)
        return preview.linear(latents, self._factors)

    def _seconds(self) -> dict[str, float]:
        """Time spent inside each component so far."""
        refining = {} if self.refiner is None else self.refiner.components.seconds
        return {**self.components.seconds, **{f"refiner_{name}": seconds for name, seconds in refining.items()}}


class _Generation:
    """One request on its way through a pipeline."""

    def __init__(self, pipeline: Pipeline, request: Request) -> None:
        self.pipeline = pipeline
        self.components = pipeline.components
        self.manifest = pipeline.manifest
        self.request = resolve(request, pipeline.manifest, refines=pipeline.refiner is not None)
        self.adapted = apply.adapt(self.request, pipeline.bundle, pipeline.components, pipeline.encoders)
        first = self.request.passes[0]
        self.scene = conditioning.scene_of(self.request, first.width, first.height)
        self._noted: set[str] = set()
        self._fresh: list[Note] = []

    def events(self) -> Iterator[Step | Note | Picture]:
        """The whole flow: denoise in stages, decode, check, record."""
        request = self.request
        steps = max(len(one.sigmas) - 1 for one in request.passes)
        savings = unet_graphs.notes(speed.find_speed(request.speed), self.adapted.unet, steps)
        self._note(*request.notes, *self.adapted.notes, *conditioning.unused(request, self.adapted.unet), *savings)
        stages = self._stages()
        yield from self._new_notes()
        inputs = reproduce.inputs(request, self.pipeline.refiner.manifest if self.pipeline.refiner else None)
        record = {**self.adapted.record, **inputs}
        done, total = 0, sum(stage.steps for stage in stages)
        for seeds in zip(range(request.count), request.seeds, request.variation_seeds, strict=True):
            drawing = Drawing(request, *seeds)
            for stage in stages:
                self._make_room(stage.owner)
                stage.begin(drawing)
                for latents in stage.denoise(drawing, request.solver, request.solver_options):
                    done += 1
                    yield Step(drawing.index, drawing.steps, total, latents, drawing.denoised, done / (total * request.count))
            self._make_room(self.components)
            picture = self._finish(drawing, self._image(drawing), record)
            yield from self._new_notes()
            yield picture

    def _note(self, *texts: str) -> None:
        """Note each text once."""
        self._fresh += [Note(text) for text in dict.fromkeys(texts) if text not in self._noted]
        self._noted |= {*texts}

    def _new_notes(self) -> list[Note]:
        """The notes since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _stages(self) -> list[Stage]:
        """The stages of every image: one, a second with hires, and the end of the last on its own with a refiner."""
        request = self.request
        encoded = conditioning.encode(request, request.passes[0], self.manifest, self.adapted.encoders)
        self._note(*encoded.notes)
        start = None if self.scene is None else self._encode(image_io.to_array(self.scene.picture))
        channels = conditioning.image_channels(self.manifest, self.scene, start, self._encode)
        stages = [
            Stage(
                self.components,
                one.sigmas,
                partial(self._begin, start) if number == 0 else self._enlarge,
                self._keeping(start, partial(conditioning.denoiser, request, one, self.manifest, self.adapted.unet, encoded, channels)),
            )
            for number, one in enumerate(request.passes)
        ]
        other, last = self.pipeline.refiner, stages[-1]
        if other is None or request.refiner_start is None:
            return stages
        place = handover(last.sigmas, self.manifest.noise, request.refiner_start)
        self._make_room(other.components)
        states = conditioning.encode(request, request.passes[-1], other.manifest, other.encoders)
        self._note(*states.notes, *([NO_STEPS] if place == last.steps else []))
        model = partial(conditioning.denoiser, request, request.passes[-1], other.manifest, other.components.get("unet"), states, {})
        return [*stages[:-1], *split_stage(last, place, other.components, self._keeping(start, model))]

    def _keeping(self, start: Array | None, model: Callable[[], Denoise]) -> Callable[[Drawing], Denoise]:
        """`model` for one image, keeping what the mask does not cover, unless the U-Net sees the mask itself."""
        scene = self.scene
        if scene is None or scene.mask is None or start is None or self.pipeline.family.task == "inpaint":
            return lambda _drawing: model()
        mask, known = inpaint.latent_mask(inpaint.pixel_mask(scene.mask), self.manifest.latent.downscale), start
        return lambda drawing: inpaint.keep_outside(model(), mask, known, drawing.noise)

    def _begin(self, start: Array | None, drawing: Drawing) -> None:
        """The first latents of an image: noise, on top of the latents `start` if there are any."""
        latent, request = self.manifest.latent, self.request
        first = request.passes[0]
        sigma = float(first.sigmas[0])
        fresh = request.strength == 1 and self.pipeline.family.task in {"inpaint", "instruct"}  # these U-Nets see the image anyway
        noise = drawing.draw_noise((1, latent.channels, first.height // latent.downscale, first.width // latent.downscale))
        if start is None or fresh:
            drawing.latents = combine((samplers.start_scale(request.solver, self.manifest.noise, sigma), noise))
        else:
            drawing.latents = combine((sigma, noise), (1.0, start))

    def _enlarge(self, drawing: Drawing) -> None:
        """Hires: from the latents of the first pass to the first latents of the second."""
        latent, second = self.manifest.latent, self.request.passes[1]
        upscaler = hires.find_upscaler(self.request.hires_upscaler)
        if upscaler.kernel is None:
            image = image_io.to_image(self._decode(drawing.latents))
            latents = self._encode(image_io.to_array(image_io.fit(image, second.width, second.height)))
        else:
            size = (second.height // latent.downscale, second.width // latent.downscale)
            latents = hires.resize(drawing.latents, *size, upscaler)
        drawing.latents = combine((float(second.sigmas[0]), drawing.draw_noise(latents.shape)), (1.0, latents))

    def _encode(self, pixels: Array) -> Array:
        return vae.encode(self.components.get("vae_encoder"), pixels, self.manifest.latent, tile=self.components.tile("vae_encoder"))

    def _decode(self, latents: Array) -> Array:
        decoder = self.components.get(TINY_DECODER if self.request.decoder == "tiny" else "vae_decoder")
        tile = self.components.tile(decoder.name)
        try:
            return vae.decode(decoder, latents, self.manifest.latent, tile=tile)
        except ResourceError:
            if tile or self.components.in_bands(decoder.name):
                raise
        self.components.close()  # the decoder still holds its memory
        self._note("not enough memory to decode the image whole: it was decoded in tiles")
        return vae.decode(decoder, latents, self.manifest.latent, tile=TILE)

    def _make_room(self, owner: Runner) -> None:
        """Close the other model, unless everything may stay in memory."""
        others = (self.components, *((self.pipeline.refiner.components,) if self.pipeline.refiner else ()))
        for other in others if self.components.plan != "resident" else ():
            if other is not owner:
                other.close()

    def _image(self, drawing: Drawing) -> Image.Image:
        image = image_io.to_image(self._decode(drawing.latents))
        return image if self.scene is None else self.scene.finished(image)

    def _finish(self, drawing: Drawing, image: Image.Image, record: dict[str, Any]) -> Picture:
        """Check the image's safety, hide it if it is flagged, and add its record."""
        pipeline = self.pipeline
        flagged = pipeline.filter is not None and pipeline.filter.flags(image)
        if flagged:
            image, look = hidden(image, pipeline.flagged), "black" if pipeline.flagged == "black" else "blurred"
            self._note(f"seed {drawing.seed}: the safety checker flagged the image, so it is {look}; try another seed or prompt")
        if flagged or (not pipeline.safety and CHECKER in self.components):
            record = {**record, "safety": "flagged" if flagged else "off"}
        record = {**record, "provider": self.components.provider.name, "memory": self.components.plan}
        return Picture(image, drawing.seed, reproduce.record_of(self.request, drawing, self.manifest, record), flagged)


def load(
    folder: str | Path | None = None,
    provider: str = "auto",
    memory: str = "auto",
    *,
    threads: int = 0,
    cache: str | Path | None = "auto",
    safety: bool = True,
    flagged: Hiding = "black",
    refiner: str | Path | None = None,
    device: int = 0,
) -> Pipeline:
    """Open a bundle.

    Args:
        folder: the bundle's folder, or that of a plain optimum or diffusers ONNX export; None opens the demo model.
        provider: execution provider: `diffusette doctor` lists them; auto is the best one that runs this bundle.
        memory: memory plan: resident, sequential, streamed, or auto for the fastest one that fits into free memory.
        threads: threads inside an operator; 0 uses every core that the process may use, or what `diffusette bench --advise` found.
        cache: folder for optimized graphs of large models, which make the next start faster; "auto" is the system's cache folder,
            None keeps nothing.
        safety: let the bundle's safety checker, if it has one, check every image. Results report whether it did.
        flagged: what becomes of an image that the checker flags: "black" makes it black, "blur" leaves a few blots of colour, from which
            the image cannot be restored.
        refiner: folder of a bundle that denoises the last steps, such as SDXL's refiner. With memory "auto", the two models are never
            open at the same time.
        device: number of the provider's device, as `diffusette doctor` lists them; 0 is the best one.

    Returns:
        A pipeline; sessions open when they are first needed.

    Raises:
        BundleError: the folder is not a bundle, or it is damaged, hostile, or made for something else.
        ProviderError: the provider is missing, or does not run this bundle.
        RequestError: an unknown memory plan or value of `flagged`, or more threads than the machine can use.

    Example:
        >>> pipeline = diffusette.load("my-bundle", memory="sequential")
    """
    threads = int(number_of("threads", threads, int, 0, hardware.most_threads()))
    safety = yes_or_no("safety", safety)
    flagged = look_up("flagged", flagged, {name: name for name in HIDINGS}, HIDINGS)
    cache = None if cache is None else str(path_of("cache", cache))
    bundle = open_bundle(DEMO if folder is None else path_of("folder", folder))
    provider, threads = followed(bundle.manifest, provider, threads)
    chosen = resolve_provider(provider, bundle.manifest.target, int(number_of("device", device, int, 0, 63)))
    plan, note = choose_plan(memory, bundle, chosen.memory)
    cache_folder, homeless = graph_cache.folder_for(cache, [bundle.path(one.graph) for one in bundle.manifest.components.values()])
    options, adaptive = SessionOptions(threads=threads or hardware.cores(), cache=cache_folder), memory == AUTO
    second: Pipeline | None = None
    if refiner is not None:
        refining = open_bundle(path_of("refiner", refiner))
        check_refiner(bundle.manifest, refining.manifest)
        if adaptive:
            plan = PLANS[max(map(PLANS.index, (plan, choose_plan(memory, refining, chosen.memory)[0], "sequential")))]
            note = f"memory: two models take turns, so the plan is {plan}"
        components = Components(refining, resolve_provider(chosen.name, refining.manifest.target, device), plan, options, adaptive=adaptive)
        second = Pipeline(refining, components, safety=False)
    components = Components(bundle, chosen, plan, options, adaptive=adaptive)
    off = "" if safety or CHECKER not in components else "the safety checker is turned off"
    notes = tuple(one for one in (chosen.note, note, homeless, off) if one)
    return Pipeline(bundle, components, notes=notes, safety=safety, flagged=flagged, refiner=second)


def generate(prompt: str | Request, model: str | Path | None = None, **fields: Unpack[Fields]) -> Result:
    """Open a model, generate, and close it again: for one request. For several, keep the pipeline of `load` open.

    Args:
        prompt: the text, or a whole `Request`.
        model: folder of a bundle; None is the demo model.
        **fields: fields of `Request`.

    Returns:
        The images, with seeds, records, timings and notes.

    Raises what `load` and `Pipeline.generate` raise.

    Example:
        >>> diffusette.generate("fox, noto style", seed=1).images[0].save("fox.png")
    """
    with load(model) as pipeline:
        return pipeline.generate(prompt, **fields)
