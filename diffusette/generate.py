"""`diffusette generate`: draw pictures from words."""

# The folders become one namespace when they are installed, so a type checker does not find them from here.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import console
from .options import FILE, FOLDER, as_json, print_json


@click.command()
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=FILE, help="PNG, JPEG or WebP file; with --count, the seed is put before the ending.")
@click.option("--model", type=FOLDER, help="Folder of a bundle.  [default: the model that ships inside]")
@click.option("--negative", help="What the picture should not show.")
@click.option("--width", type=int, help="Pixels, a multiple of 8.")
@click.option("--height", type=int, help="Pixels, a multiple of 8.")
@click.option("--steps", type=int)
@click.option("--guidance", type=float, help="How closely the prompt is followed; 1 switches guidance off.")
@click.option("--sampler", help="euler, euler_a, ddim, dpm++2m, … or what A1111 and diffusers call it.")
@click.option("--sampler-option", "sampler_options", multiple=True, metavar="NAME=VALUE", help="eta=0.5, s_churn=10, s_noise=1.01, …")
@click.option("--schedule", help="model, karras, exponential, …")
@click.option("--timesteps", metavar="N,N,…", help="A schedule of your own: falling timesteps of the model.")
@click.option("--sigmas", metavar="N,N,…", help="A schedule of your own: falling noise levels.")
@click.option("--seed", type=int, help="The same seed draws the same picture.  [default: random]")
@click.option("--count", type=int, help="How many pictures, seeds counting up.  [default: 1]")
@click.option("--variation", type=float, help="How far --seed is turned towards --variation-seed, 0 to 1; pictures vary that way.")
@click.option("--variation-seed", type=int, help="[default: random]")
@click.option("--init", type=FILE, help="Draw over this picture.")
@click.option("--strength", type=float, help="How much of --init is drawn anew, 0 to 1.  [default: 0.75; models that see the picture: 1]")
@click.option("--mask", type=FILE, help="Draw anew only where this picture is white.")
@click.option("--mask-blur", type=float, help="Pixels over which what is drawn fades into --init.  [default: 4]")
@click.option("--only-masked", is_flag=True, default=None, help="Draw the masked area at the full size and paste it into --init.")
@click.option("--mask-padding", type=int, help="Pixels around that area that the model sees.  [default: 32]")
@click.option("--hires", type=float, metavar="FACTOR", help="Draw, upscale by this factor, and draw over that.")
@click.option("--hires-steps", type=int, help="Steps at the large size.  [default: --steps × --hires-strength]")
@click.option("--hires-strength", type=float, help="How much is drawn anew there, 0 to 1.  [default: 0.5; latents: 0.6]")
@click.option("--hires-upscaler", help="lanczos, latent, latent_nearest, latent_bicubic or latent_lanczos.  [default: lanczos]")
@click.option("--clip-skip", type=int, help="Layers of the text encoder to leave out.")
@click.option("--rescale", type=float, help="Guidance rescale, 0 to 1.")
@click.option("--guidance-interval", type=(float, float), metavar="START STOP", help="Steps in which guidance works, as two fractions.")
@click.option("--image-guidance", type=float, help="How strongly pix2pix models hold to --init.  [default: 1.5]")
@click.option(
    "--original-size", type=(int, int), metavar="WIDTH HEIGHT", help="SDXL: the size that the model is told of.  [default: its own]"
)
@click.option("--crop", type=(int, int), metavar="LEFT TOP", help="SDXL: how far the picture is said to be cut.  [default: 0 0]")
@click.option("--rng", help="Whose noise: numpy, torch or nv.")
@click.option("--refiner", type=FOLDER, help="Bundle of a model that draws the last steps.")
@click.option("--refiner-start", type=float, help="Where it takes over, as a share of the timesteps.  [default: 0.8]")
@click.option("--decoder", help="vae, or tiny: faster, if the bundle has one.  [default: vae]")
@click.option("--speed", help="exact, balanced or fast: how much work is left out.  [default: exact]")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:WEIGHT]", help="Add a LoRA (safetensors); may be given several times.")
@click.option("--lora-folder", type=FOLDER, help="Where <lora:name:weight> and --from find their files.  [default: beside --lora]")
@click.option("--embedding", "embeddings", type=FILE, multiple=True, help="Textual inversion; its file's name is the word.")
@click.option("--from", "source", type=FILE, help="Draw this picture of ours again; other options change it.")
@click.option("--provider", default="auto", show_default=True, help="cpu, cuda, directml, openvino, webgpu or auto.")
@click.option("--memory", default="auto", show_default=True, help="resident, sequential, streamed or auto.")
@click.option("--threads", type=int, default=0, help="Threads inside an operator.  [default: one a core]")
@click.option("--no-cache", is_flag=True, help="Keep no optimized graphs of large models for the next start.")
@click.option("--no-safety-filter", is_flag=True, help="Do not check pictures with the model's safety checker; the result says so.")
@click.option("--no-metadata", is_flag=True, help="Leave the prompt and settings out of the file (the AI mark stays).")
@click.option("--no-ai-mark", is_flag=True, help="Leave out the mark that says the picture was made by AI.")
@as_json
def generate(
    prompt: str | None,
    output: Path | None,
    model: Path | None,
    source: Path | None,
    refiner: Path | None,
    provider: str,
    memory: str,
    threads: int,
    no_cache: bool,
    no_safety_filter: bool,
    no_metadata: bool,
    no_ai_mark: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Draw PROMPT."""
    from .runtime import files, metadata, pipeline, recording

    if prompt is None and source is None:
        raise click.UsageError('a prompt is missing: expected words to draw, as in diffusette generate "red apple, flat style"')
    before = None if source is None else files.recorded(source)
    request = files.request_of(prompt, before, {name: value for name, value in asked.items() if value not in {None, ()}})
    path_of = files.paths_for(output, request)
    with console.progress() as advance:
        advance("opening the model", 0.0)

        def seen(event: pipeline.Step | pipeline.Picture) -> None:
            if isinstance(event, pipeline.Picture):
                metadata.write(event.image, path_of(event.record), None if no_metadata else event.record, ai=not no_ai_mark)
            else:
                advance(f"picture {event.picture + 1} of {request.count}", event.done)

        cache = None if no_cache else "auto"
        with pipeline.load(model, provider, memory, threads=threads, cache=cache, safety=not no_safety_filter, refiner=refiner) as drawer:
            refining = None if drawer.refiner is None else drawer.refiner.manifest
            notes = [] if before is None else recording.differences(before.record, request, drawer.manifest, refining)
            result = drawer.watch(request, seen)
    written = [path_of(record) for record in result.metadata]
    notes += result.notes
    for note in notes:
        console.say(f"note: {note}")
    if as_json:
        print_json(
            {
                "files": [str(path) for path in written],
                "seeds": result.seeds,
                "provider": result.provider,
                "memory": result.plan,
                "safety": result.safety,
                "flagged": [picture.seed for picture in result.pictures if picture.flagged],
                "timings": result.timings,
                "notes": notes,
            }
        )
        return
    console.say(f"{result.timings['total']:.2f} s on {result.provider}, seed {', '.join(map(str, result.seeds))}")
    for path in written:
        click.echo(path)
