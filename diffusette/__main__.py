"""The command line. stdout holds the result, stderr the progress; exit 0, 1 with one clear line, 2 usage, 130 interrupted."""

# The folders become one namespace when they are installed, so a type checker does not find them from here.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__, console
from .models.errors import DiffusetteError, RequestError

if TYPE_CHECKING:
    from .models.bundle import Bundle

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="diffusette")
def cli() -> None:
    """Stable Diffusion, small enough to ship."""


@cli.command()
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
    request = files.request_of(prompt, source, {name: value for name, value in asked.items() if value not in {None, ()}})
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
            record = None if source is None else metadata.read(source).record
            refining = None if drawer.refiner is None else drawer.refiner.manifest
            notes = [] if record is None else recording.differences(record, request, drawer.manifest, refining)
            result = drawer.watch(request, seen)
    written = [path_of(record) for record in result.metadata]
    notes += result.notes
    for note in notes:
        console.say(f"note: {note}")
    if as_json:
        _print_json(
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


@cli.command()
@click.argument("source")
@click.argument("destination", type=FOLDER)
@click.option("--revision", help="Branch, tag or commit of a model on a hub.  [default: its main branch]")
@click.option("--target", default="cpu", show_default=True, type=click.Choice(["cpu", "openvino", "cuda", "directml", "portable"]))
@click.option(
    "--precision",
    help="fp32, fp16, int8 or int4; or COMPONENT=PRECISION,…  [default: int8; cuda, directml: fp16; portable: fp32]",
)
@click.option(
    "--min-snr",
    type=click.FloatRange(min=0),
    metavar="DB",
    help="How close the U-Net has to come to float: layers get more bits until it does.  [default: int4: 18, int8: 24, fp16: 45]",
)
@click.option("--prompts", type=FILE, help="Text file, a prompt a line: what int8 is calibrated on.")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:WEIGHT]", help="Merge a LoRA (safetensors); may be given several times.")
@click.option("--tiny-vae", type=click.Path(path_type=Path), help="Add the decoder of this tiny autoencoder (TAESD), a file or a folder.")
@click.option("--force", is_flag=True, help="Replace DESTINATION if it exists.")
@as_json
def export(
    source: str,
    destination: Path,
    revision: str | None,
    target: Any,
    precision: str | None,
    min_snr: float | None,
    prompts: Path | None,
    loras: tuple[str, ...],
    tiny_vae: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn the Stable Diffusion model SOURCE into the bundle DESTINATION.

    SOURCE is a diffusers folder, a safetensors checkpoint, a folder of ONNX graphs as optimum writes it, or OWNER/NAME of a model on
    the Hugging Face hub.
    """
    try:
        from .export import export as exporting
        from .export.merge import Lora
    except ModuleNotFoundError as error:
        raise RequestError(f'exporting needs {error.name}, which is not installed: pip install "diffusette[cpu,export]"') from error

    from .runtime import files

    options = exporting.Options(
        target=target,
        precision=exporting.precision_of(precision, target),
        min_snr=min_snr,
        prompts=files.lines(prompts) if prompts else (),
        loras=tuple(Lora(*files.lora_of(text)) for text in loras),
        revision=revision,
        tiny_vae=tiny_vae,
        force=force,
    )
    with console.progress() as advance:
        report = exporting.export_folder(source, destination, options, advance)
    for warning in report.warnings:
        console.say(f"note: {warning}")
    if as_json:
        _print_json(console.plain(report))
        return
    reference = "torch" if report.manifest.source.reference == "torch" else "the source's graphs"
    for name, component in report.manifest.components.items():
        console.say(f"{name}: {component.precision}, {component.parity_db:.1f} dB against {reference}")
    click.echo(destination)


@cli.command()
@click.argument("folder", type=FOLDER, required=False)
@as_json
def inspect(folder: Path | None, as_json: bool) -> None:
    """Say what the bundle FOLDER (or the model inside) is."""
    bundle = _open(folder)
    facts = console.plain(bundle.manifest)
    if as_json:
        _print_json(facts)
    else:
        click.echo(console.outline(facts))
        if "report.json" in bundle.manifest.files:
            click.echo("report: what each layer became, and what that costs at the output, stands in report.json and report.svg")


@cli.command()
@click.argument("folder", type=FOLDER, required=False)
@as_json
def verify(folder: Path | None, as_json: bool) -> None:
    """Hash every file of the bundle FOLDER and compare with its manifest."""
    from .models.bundle import verify as problems_of

    bundle = _open(folder)
    with console.progress() as advance:
        problems = problems_of(bundle, lambda path, done, total: advance(path, done / max(1, total)))
    if as_json:
        _print_json({"ok": not problems, "problems": problems})
    else:
        click.echo("\n".join(problems) or "ok: every file is as the manifest says")
    if problems:
        raise SystemExit(1)


@cli.command()
@click.argument("file", type=FILE)
@as_json
def metadata(file: Path, as_json: bool) -> None:
    """Print how the picture FILE was made."""
    from .runtime.metadata import read

    facts = read(file).facts()
    if as_json:
        _print_json(facts)
    else:
        click.echo(console.outline(facts))


@cli.command()
@click.option(
    "--model", "models", type=FOLDER, multiple=True, help="Folder of a bundle; may be given several times.  [default: the model inside]"
)
@click.option("--versus", type=FOLDER, help="Compare each model with this bundle, drawing in turns.")
@click.option("--reference", type=FOLDER, help="Compare the pictures and components with those of this bundle.")
@click.option("--prompt", default="red apple, flat style, blue background", show_default=True)
@click.option("--provider", default="auto", show_default=True, help="One or more of cpu, cuda, directml, openvino, webgpu, auto.")
@click.option("--memory", default="auto", show_default=True, help="One or more of resident, sequential, streamed, auto.")
@click.option("--threads", default="0", help="One or more numbers.  [default: one a core]")
@click.option("--size", help="One or more of N or WIDTHxHEIGHT, in pixels.  [default: the model's]")
@click.option("--steps", help="One or more numbers.  [default: the model's]")
@click.option("--speed", default="exact", show_default=True, help="One or more of exact, balanced, fast.")
@click.option("--count", default="1", show_default=True, help="Pictures a request: one or more numbers.")
@click.option("--profile", type=click.Choice(["mlperf", "procyon"]), help="Steps, guidance and sampler of a published protocol.")
@click.option("--advise", is_flag=True, help="Find what suits this machine, and keep it for auto.")
@click.option("--forget", is_flag=True, help="Forget what --advise kept.")
@click.option("--guidance", type=float)
@click.option("--sampler")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--against", help="One or more other engines: diffusers, onnxruntime, optimum, openvino, stable-diffusion.cpp.")
@click.option("--source", type=FOLDER, help="The diffusers folder that the model was exported from, for --against.")
@click.option("--environments", type=FOLDER, help="Where other engines are installed.  [default: a folder in the cache]")
@click.option("--judge", type=int, default=0, help="Let the judge look at N pictures of the demo model, up to 200.")
@click.option("--cold", is_flag=True, help="Start once more with the model's files out of the system's cache.")
@click.option("--warmup", type=int, default=1, show_default=True, help="Requests after the first that are not counted.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Requests that are.")
@click.option("-o", "--output", type=FILE, help="Keep everything in this JSON file, while measuring.")
@click.option("--csv", type=FILE, help="Keep the rows in this CSV file.")
@click.option("--markdown", type=FILE, help="Keep the table in this Markdown file.")
@click.option("--plot", type=FILE, help="Draw latency, memory and fidelity into this SVG file.")
@click.option("--sheet", type=FILE, help="Put the pictures side by side into this PNG file.")
@as_json
def bench(
    models: tuple[Path, ...],
    provider: str,
    memory: str,
    threads: str,
    size: str | None,
    steps: str | None,
    count: str,
    output: Path | None,
    csv: Path | None,
    markdown: Path | None,
    sheet: Path | None,
    plot: Path | None,
    against: str | None,
    speed: str,
    advise: bool,
    forget: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure time, memory and fidelity. Where several values may be given, commas part them; all combinations are measured."""
    from .benchmarks import advise as advising
    from .benchmarks import grid, protocol, report

    if forget:
        from .runtime.advice import forget as forget_advice

        click.echo(forget_advice() or "there was no advice")
        return
    settings = grid.Settings(
        models=models or (None,),
        providers=grid.names(provider),
        memories=grid.names(memory),
        threads=grid.numbers("threads", threads),
        sizes=grid.sizes(size) if size else ((None, None),),
        steps=grid.numbers("steps", steps) if steps else (None,),
        counts=grid.numbers("count", count),
        against=grid.names(against) if against else (),
        speeds=grid.names(speed),
        **asked,
    )
    write = report.keeper({"json": output, "csv": csv, "markdown": markdown, "plot": plot})
    kept: list[Any] = []

    def keep(found: Any) -> None:
        kept[:] = [found]
        write(found)

    try:
        with console.progress() as advance:
            if advise:
                advising.run(settings, advance, keep)
            else:
                protocol.run(settings, advance, keep, sheet)
    finally:
        if kept:
            click.echo((report.as_json if as_json else report.text)(kept[0]).rstrip("\n"))
    if kept[0].failure():
        raise click.ClickException(kept[0].failure())


@cli.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what this machine has, what is missing, and what to install."""
    from .runtime.doctor import report

    found = report()
    facts = console.plain(found)
    if as_json:
        _print_json(facts)
    else:
        click.echo(console.outline(facts))
    if found.problems:
        raise SystemExit(1)


def _open(folder: Path | None) -> Bundle:
    from .models.bundle import DEMO, open_bundle

    return open_bundle(folder or DEMO)


def _print_json(facts: object) -> None:
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False))


def main() -> None:
    """Run the command line; every expected failure is one line on stderr and an exit code."""
    try:
        code = cli(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except DiffusetteError as error:
        code = _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted", 130)
    except MemoryError:
        code = _fail("memory does not suffice: draw smaller, or use --memory streamed", 1)
    except BrokenPipeError:
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    click.echo(f"diffusette: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
