"""`diffusette bench`: measure time, memory and fidelity."""

# The folders become one namespace when they are installed, so a type checker does not find them from here.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import console
from .options import FILE, FOLDER, as_json


@click.command()
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
