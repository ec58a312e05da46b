"""`diffusette generate`: images from text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import console
from .marking import mark_options
from .options import FILE, FOLDER, MEMORY, PROVIDER, GroupedCommand, as_json, device_option, flagged_option, option, request_options

if TYPE_CHECKING:
    from ..runtime.images.safety_checker import Hiding
    from ..runtime.provenance.marks import Marks

_MODEL, _FILES, _CHECKS = "Model and machine", "Files", "Safety and marks"


@click.command(cls=GroupedCommand)
@click.argument("prompt", required=False)
@request_options("Image", "negative", "width", "height", "seed", "count", "variation", "variation_seed")
@request_options("Sampling", "steps", "guidance", "sampler", "sampler_options", "schedule", "timesteps", "sigmas")
@request_options("Sampling", "guidance_interval", "rescale", "clip_skip", "rng", "speed")
@request_options(
    "Image to image and inpainting", "init", "fit", "strength", "image_guidance", "mask", "mask_blur", "only_masked", "mask_padding"
)
@request_options("High resolution", "hires", "hires_steps", "hires_strength", "hires_upscaler")
@request_options("SDXL", "original_size", "crop")
@option("--refiner", type=FOLDER, group="SDXL", help="Bundle of a model that denoises the last steps.")
@request_options("SDXL", "refiner_start")
@request_options("Styles", "loras", "lora_folder", "embeddings")
@option("--model", type=FOLDER, group=_MODEL, help="Folder of a bundle.  [default: the demo model]")
@request_options(_MODEL, "decoder")
@option("--provider", default="auto", show_default=True, type=PROVIDER, group=_MODEL, help="A provider of `diffusette doctor`, or auto.")
@device_option(_MODEL)
@option("--memory", default="auto", show_default=True, type=MEMORY, group=_MODEL, help="Memory plan.")
@option("--threads", type=int, default=0, group=_MODEL, help="Threads inside an operator.  [default: one per core]")
@option("--no-cache", is_flag=True, group=_MODEL, help="Do not keep optimized graphs of large models for the next start.")
@option("-o", "--output", type=FILE, group=_FILES, help="PNG, JPEG or WebP file. With --count, the seed goes before the ending.")
@option("--from", "source", type=FILE, group=_FILES, help="Reproduce an image made by diffusette; other options override its settings.")
@option("--no-safety-filter", is_flag=True, group=_CHECKS, help="Turn off the model's safety checker; the result says so.")
@flagged_option(_CHECKS)
@option("--no-metadata", is_flag=True, group=_CHECKS, help="Leave prompt and settings out of the file; the AI mark stays.")
@option("--no-ai-mark", is_flag=True, group=_CHECKS, help="Leave out the mark that says that AI made the image.")
@mark_options(_CHECKS)
@as_json
def generate(
    prompt: str | None,
    output: Path | None,
    model: Path | None,
    source: Path | None,
    refiner: Path | None,
    provider: str,
    device: int,
    memory: str,
    threads: int,
    no_cache: bool,
    no_safety_filter: bool,
    flagged: Hiding,
    no_metadata: bool,
    no_ai_mark: bool,
    marks: Marks,
    as_json: bool,
    **asked: Any,
) -> None:
    """Generate images from PROMPT.

    \b
    Examples:
      diffusette generate "red apple, flat style, blue background" --seed 7 -o apple.png
      diffusette generate "cat" --init photo.png --strength 0.6
      diffusette generate --from apple.png --steps 20
    """  # noqa: D301  # \b keeps click from wrapping the examples
    from ..runtime import pipeline, reproduce
    from ..runtime.provenance.marks import unmarked
    from ..runtime.saving import ImageWriter, as_before
    from . import inputs

    if no_metadata and marks.sign_prompt:
        raise click.UsageError("--no-metadata and --sign-prompt contradict each other; expected one of them")
    before = None if source is None else inputs.recorded(source)
    marks = as_before(marks, None if before is None else before.record)
    writer = ImageWriter(unmarked(marks) if no_ai_mark else marks)
    writer.check()
    request = inputs.request_of(prompt, before, {name: value for name, value in asked.items() if value is not None and value != ()})
    path_of = inputs.paths_for(output, request)
    parent = inputs.parent_of(asked.get("init"))
    original = {} if before is None else reproduce.machine_of(before.record)
    if provider == "auto" and original.get("provider") in {None, "cpu"}:
        provider = original.get("provider", provider)
    if memory == "auto":
        memory = original.get("memory", memory)
    files: list[str] = []
    seeds: list[int] = []
    hidden: list[int] = []
    with console.progress() as advance:
        advance("opening the model", 0.0)

        def seen(event: pipeline.Step | pipeline.Note | pipeline.Picture) -> None:
            if isinstance(event, pipeline.Picture):
                path = path_of(event.record)
                writer.write(event, path, metadata=not no_metadata, ai=not no_ai_mark, parent=parent)
                files.append(str(path))
                seeds.append(event.seed)
                hidden.extend([event.seed] if event.flagged else [])
            elif isinstance(event, pipeline.Step):
                advance(f"image {event.picture + 1} of {request.count}", event.done)

        cache = None if no_cache else "auto"
        load = partial(pipeline.load, safety=not no_safety_filter, flagged=flagged, refiner=refiner, device=device)
        with load(model, provider, memory, threads=threads, cache=cache) as opened:
            refining = None if opened.refiner is None else opened.refiner.manifest
            writer.check_size(lambda: opened.size_of(request))
            result = console.interruptible(lambda: opened.watch(request, seen, keep=False), opened.cancel)
            ran = {"provider": result.provider, "memory": result.plan}
            notes = [] if before is None else reproduce.differences(before.record, request, opened.manifest, refining, ran)
    notes += [*writer.differences(None if before is None else before.record), *result.notes, *writer.notes]
    for note in notes:
        console.say(f"note: {note}")
    if as_json:
        console.write_json(
            {
                "files": files,
                "seeds": seeds,
                "provider": result.provider,
                "memory": result.plan,
                "safety": result.safety,
                "flagged": hidden,
                "signed": writer.signs,
                "watermark": writer.watermark,
                "timings": result.timings,
                "notes": notes,
            }
        )
        return
    console.say(f"{result.timings['total']:.2f} s on {result.provider}, seed {', '.join(map(str, seeds))}")
    for file in files:
        console.write(file)
