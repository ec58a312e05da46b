"""`diffusette bench`: measure time, memory and fidelity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from . import console
from .options import FILE, FOLDER, SAMPLER, GroupedCommand, as_json, option

if TYPE_CHECKING:
    from ..benchmarks.results import Report

Advance = Callable[[str, float], None]


class _Failing(Protocol):
    def failure(self) -> str: ...


Found = TypeVar("Found", bound=_Failing)
_WHAT, _HOW, _GROUPS, _COMPARE, _OUT = "Models and requests", "Measuring", "Groups of prompts", "Comparing", "Results"


@click.command(cls=GroupedCommand)
@option(
    "--model", "models", type=FOLDER, multiple=True, group=_WHAT, help="Folder of a bundle; repeat for several.  [default: the demo model]"
)
@option("--prompt", default="red apple, flat style, blue background", show_default=True, group=_WHAT, help="Prompt of every request.")
@option("--provider", default="auto", show_default=True, group=_WHAT, help="One or more of cpu, cuda, directml, openvino, webgpu, auto.")
@option("--memory", default="auto", show_default=True, group=_WHAT, help="One or more of resident, sequential, streamed, auto.")
@option("--threads", default="0", group=_WHAT, help="One or more numbers.  [default: one thread per core]")
@option("--size", group=_WHAT, help="One or more of N or WIDTHxHEIGHT, in pixels.  [default: the model's]")
@option("--steps", group=_WHAT, help="One or more numbers.  [default: the model's]")
@option("--speed", default="exact", show_default=True, group=_WHAT, help="One or more of exact, balanced, fast.")
@option("--count", default="1", show_default=True, group=_WHAT, help="Images per request: one or more numbers.")
@option("--guidance", type=float, group=_WHAT, help="Guidance scale.  [default: the model's]")
@option("--sampler", type=SAMPLER, group=_WHAT, help="Sampler.  [default: the model's]")
@option("--seed", type=int, default=0, show_default=True, group=_WHAT, help="Seed of the first request.")
@option("--profile", type=click.Choice(["mlperf", "procyon"]), group=_WHAT, help="Steps, guidance and sampler of a published protocol.")
@option("--warmup", type=int, default=1, show_default=True, group=_HOW, help="Requests after the first that are not counted.")
@option("--repeats", type=int, default=5, show_default=True, group=_HOW, help="Requests that are counted.")
@option("--cold", is_flag=True, group=_HOW, help="Also measure a start with the model's files dropped from the system's cache.")
@option("--judge", type=int, default=0, group=_HOW, help="Let the judge rate N images of the demo model, up to 200.")
@option("--spread", type=FILE, group=_GROUPS, help="Generate the prompts of this file, and compare its groups of prompts instead of times.")
@option("--seeds", type=int, default=4, show_default=True, group=_GROUPS, help="Seeds of each prompt of --spread, from --seed on.")
@option("--advise", is_flag=True, group=_HOW, help="Find the fastest settings for this machine, and keep them for auto.")
@option("--forget", is_flag=True, group=_HOW, help="Forget what --advise kept.")
@option("--versus", type=FOLDER, group=_COMPARE, help="Compare each model with this bundle, in alternating requests.")
@option("--reference", type=FOLDER, group=_COMPARE, help="Compare images and components with those of this bundle.")
@option("--against", group=_COMPARE, help="One or more other engines: diffusers, onnxruntime, optimum, openvino, stable-diffusion.cpp.")
@option("--source", type=FOLDER, group=_COMPARE, help="For --against: the diffusers folder from which the model was exported.")
@option("--environments", type=FOLDER, group=_COMPARE, help="Where other engines are installed.  [default: a folder in the cache]")
@option("-o", "--output", type=FILE, group=_OUT, help="Write everything to this JSON file while measuring.")
@option("--csv", type=FILE, group=_OUT, help="Write the rows to this CSV file.")
@option("--markdown", type=FILE, group=_OUT, help="Write the table to this Markdown file.")
@option("--plot", type=FILE, group=_OUT, help="Plot latency, memory and fidelity to this SVG file.")
@option("--sheet", type=FILE, group=_OUT, help="Write the images side by side to this PNG file.")
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
    spread: Path | None,
    seeds: int,
    advise: bool,
    forget: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure time, memory and fidelity.

    With --spread, measure how evenly a model does by groups of prompts.

    Options that take one or more values separate them with commas; every combination is measured.
    """
    from ..benchmarks import runner, settings
    from ..benchmarks import spread as spreading
    from ..benchmarks import tune as advising
    from ..benchmarks.reporting import formats, spread_formats

    if forget:
        from ..runtime.engine.tuned_settings import forget as forget_advice

        console.write(str(forget_advice() or "there are no tuned settings to forget"))
        return
    plan = settings.Settings(
        models=models or (None,),
        providers=settings.names(provider),
        memories=settings.names(memory),
        threads=settings.numbers("threads", threads),
        sizes=settings.sizes(size) if size else ((None, None),),
        steps=settings.numbers("steps", steps) if steps else (None,),
        counts=settings.numbers("count", count),
        against=settings.names(against) if against else (),
        speeds=settings.names(speed),
        **asked,
    )
    files = {"json": output, "csv": csv, "markdown": markdown, "plot": plot}
    printed = "json" if as_json else "text"
    if spread is not None:
        _check_spread(asked, {"sheet": sheet, "against": against, "advise": advise})
        file = spread
        _measure(lambda advance, keep: spreading.run(plan, file, seeds, advance, keep), spread_formats.FORMS, printed, files)
        return

    def run(advance: Advance, keep: Callable[[Report], None]) -> object:
        return advising.run(plan, advance, keep) if advise else runner.run(plan, advance, keep, sheet)

    _measure(run, formats.FORMS, printed, files)


def _check_spread(asked: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuse options that --spread has no use for.

    Raises:
        click.UsageError: one of them is given.
    """
    used = {**others, **{name: asked[name] for name in ("cold", "judge", "versus", "reference")}}
    given = ", ".join(f"--{name}" for name, value in used.items() if value)
    if given:
        raise click.UsageError(
            f"--spread cannot be combined with {given}: leave one of them out; several --model are compared by themselves"
        )


def _measure(
    run: Callable[[Advance, Callable[[Found], None]], object],
    forms: Mapping[str, Callable[[Found], str]],
    printed: str,
    files: Mapping[str, Path | None],
) -> None:
    """Run, write what is found into `files`, and print it in the form `printed`, what was found before an interruption too.

    Raises:
        click.ClickException: nothing could be measured or compared.
    """
    from ..benchmarks.reporting import formats

    write = formats.keeper(files, forms)
    kept: list[Found] = []

    def keep(found: Found) -> None:
        kept[:] = [found]
        write(found)

    try:
        with console.progress() as advance:
            run(advance, keep)
    finally:
        if kept:
            console.write(forms[printed](kept[0]).rstrip("\n"))
    if failure := kept[0].failure():
        raise click.ClickException(failure)
